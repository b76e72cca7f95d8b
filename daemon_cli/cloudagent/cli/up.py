from pathlib import Path
from typing import Annotated

import typer


def up(
    demo: Annotated[
        bool, typer.Option("--demo", help="A scripted model: no key, no coding agent needed.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the page; 8700, or the next free one."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    runtime: Annotated[
        str | None, typer.Option(help="What thinks: claude_code, builtin; else the first found.")
    ] = None,
) -> None:
    """Start everything on this computer: server, daemon, an agent for this folder, the page.

    It listens on 127.0.0.1 only. Ctrl-C stops all of it; a second `up` finds the running one.
    """
    import anyio

    from cloudagent.local.report import Report
    from cloudagent.local.up import Wishes, run_up
    from cloudagent_protocol.resources import Driver

    known = [driver.value for driver in Driver]
    if runtime is not None and runtime not in known:
        raise typer.BadParameter(f"{runtime!r} is no runtime; there are {', '.join(known)}")
    if demo and runtime not in {None, "scripted"}:
        raise typer.BadParameter(f"--demo means --runtime scripted, not {runtime}")
    wishes = Wishes(
        folder=Path.cwd(),
        port=port,
        browser=browser,
        runtime="scripted" if demo else runtime,
    )
    code = anyio.run(run_up, wishes, Report())
    raise typer.Exit(code)
