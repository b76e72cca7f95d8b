"""`doctor`: what it says of what it sees, what it mends, and that a failure is no end."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon import config, profile
from cloudagent_daemon.cli import examine
from cloudagent_daemon.doctor import asked, findings, machine
from cloudagent_daemon.doctor.findings import Finding
from cloudagent_daemon.paths import Paths
from fakes.backend import KEY, scripted_backend
from fakes.home import Home

SERVICE = {"manager": "systemd", "name": "cloudagent-daemon.service"}
GOLDEN = Path(__file__).parents[1] / "golden" / "cli" / "doctor.txt"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def by_name(out: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(out)["findings"]}


# --- what is told ---------------------------------------------------------------------------


def example() -> list[Finding]:
    return [
        Finding(
            "Environment", "install", "ok", "/home/ana/.local/share/uv/tools/cloudagent-daemon"
        ),
        Finding("Environment", "leftovers", "warn", "a daemon was killed", "doctor --fix"),
        Finding("Connection", "server", "ok", "https://agents.example.com answers"),
        Finding(
            "Connection", "machine key", "fail", "not accepted (401)", "cloudagent-daemon login"
        ),
        Finding("Runtimes", "gemini", "skip", "not found"),
        Finding("Runtimes", "claude_code", "ok", "2.1.197  (/usr/bin/claude)"),
    ]


def test_failures_come_first_with_their_fixes_then_each_section() -> None:
    told = "\n".join(findings.lines(example(), where="in the running daemon")) + "\n"
    assert told == GOLDEN.read_text("utf-8")


CLAUDE = {"name": "claude_code", "version": "2.1.197", "path": "/usr/bin/claude", "problem": None}


def ours(words: str) -> str:
    return f"cloudagent-daemon {words}"


def in_state(state: str) -> list[Finding]:
    """What the daemon and the coding agents make `doctor` say, but for what is this machine's own."""
    report: dict[str, Any] | None = {"pid": 4711, "state": "connected", "service": SERVICE}
    check: dict[str, Any] = {"backend": {"ms": 12.0, "problem": None}}
    runtimes = [CLAUDE]
    match state:
        case "not-running":
            report = None
        case "reconnecting":
            report |= {"state": "connecting", "detail": "502 Bad Gateway; attempt 6, next in 12 s"}
        case "key-rejected":
            detail = "https://agents.example.com does not accept this machine's key"
            report |= {"state": "unauthorized", "detail": detail}
        case "approval-waiting":
            pass  # what a person is asked is nobody's fault
        case "no-runtime" | "demo":
            why = "not found; install it with  npm install -g @anthropic-ai/claude-code"
            runtimes = [{"name": "claude_code", "problem": why}]
        case _:
            raise AssertionError(state)
    found = asked.service(report, ours)
    found += asked.link(report, check, ours) if report else []
    in_daemon, demo = report is not None, state == "demo"
    known: dict[str, Any] = {"in_daemon": in_daemon, "demo": demo, "command": ours}
    return [*found, *asked.runtimes(runtimes, "", None, **known)]


STATES = (
    "not-running",
    "reconnecting",
    "key-rejected",
    "approval-waiting",
    "no-runtime",
    "demo",
)


def told_in(state: str) -> str:
    where = "in this process" if state == "not-running" else "in the running daemon"
    return "\n".join(findings.lines(in_state(state), where=where)) + "\n"


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_told_in_words_that_lead_on(state: str) -> None:
    assert told_in(state) == GOLDEN.with_stem(f"doctor-{state}").read_text("utf-8")


def test_what_happened_to_the_running_daemons_installation_is_told_with_its_way_out(
    tmp_path: Path,
) -> None:
    gone = "the Python that runs this daemon is gone (/opt/python was moved or removed)"
    way_out = "uv tool install --reinstall cloudagent-daemon"
    report = {"installation": {"state": "orphaned", "detail": f"{gone}; reinstall it: {way_out}"}}
    first = next(iter(machine.environment(Paths(tmp_path, "default"), report, ours)))
    assert (first.name, first.state, first.fix) == ("install", "fail", way_out)
    assert first.detail == f"of the running daemon: {gone}"


def test_no_detail_steers_the_terminal_shows_a_key_or_fills_the_screen() -> None:
    hostile = f"\x1b]0;owned\x07\n{KEY}\u202e\ncat_{'x' * 40}" + "ü" * 65_536
    told = findings.lines([Finding("Agents", "a", "fail", hostile, hostile)], where="here")
    assert all(line.isprintable() for line in told)
    assert KEY not in "".join(told)
    assert "xxxxx" not in "".join(told)
    assert max(len(line) for line in told) < 400


def test_warnings_fail_only_where_that_is_asked_for() -> None:
    [warning] = [one for one in example() if one.state == "warn"]
    assert not findings.failed([warning], strict=False)
    assert findings.failed([warning], strict=True)
    assert findings.failed(example(), strict=False)


def test_what_cannot_be_mended_stays_as_it_was_and_says_why() -> None:
    def refuse() -> str:
        raise PermissionError("not yours")

    one = Finding("Environment", "config", "fail", "mode 0644", "chmod", refuse)
    assert findings.mend([one]) == []
    assert (one.state, one.detail) == ("fail", "mode 0644; it could not be mended: not yours")


# --- rules ------------------------------------------------------------------------------------


def program(folder: Path) -> str:
    folder.mkdir(parents=True)
    file = folder / "claude"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def told(tmp_path: Path, runtime: dict[str, Any], **more: Any) -> dict[str, Finding]:
    known: dict[str, Any] = {
        "tools": None,
        "in_daemon": True,
        "demo": False,
        "command": ours,
        **more,
    }
    seen = [{"name": "claude_code", **runtime}, {"name": "scripted"}]
    found = asked.runtimes(seen, str(tmp_path / "shell"), **known)
    return {one.name: one for one in found}


def test_a_program_that_only_the_shell_finds_is_a_failure_of_the_daemons_path(
    tmp_path: Path,
) -> None:
    here = program(tmp_path / "shell")
    found = told(tmp_path, {"problem": "not found"})
    assert found["claude_code"].state == "fail"
    assert here in found["claude_code"].detail
    assert found["claude_code"].fix == "cloudagent-daemon stop, then cloudagent-daemon start"


def test_another_program_in_the_shell_is_worth_a_word(tmp_path: Path) -> None:
    here, there = program(tmp_path / "shell"), program(tmp_path / "service")
    found = told(tmp_path, {"version": "2", "path": there})
    assert (found["claude_code"].state, found["claude_code"].detail.endswith(here)) == (
        "warn",
        True,
    )
    assert told(tmp_path, {"version": "2", "path": here})["claude_code"].state == "ok"


def test_a_coding_agent_that_is_not_logged_in_is_named_with_its_program(tmp_path: Path) -> None:
    found = told(tmp_path, {"version": "2", "path": "/x/claude", "logged_in": False})
    assert found["claude_code"].state == "warn"
    assert found["claude_code"].fix.startswith("claude ")


def test_what_is_known_against_a_coding_agent_is_told(tmp_path: Path) -> None:
    warning = "ANTHROPIC_API_KEY is set, and it is logged in"
    found = told(tmp_path, {"version": "2", "path": "/x/claude", "warning": warning})
    assert found["claude_code"].state == "warn"
    assert warning in found["claude_code"].detail


def test_tools_that_start_slowly_or_not_at_all_are_told(tmp_path: Path) -> None:
    for tools, state in (
        ({"ms": 248.0, "problem": None}, "ok"),
        ({"ms": 2_904.0, "problem": None}, "warn"),
        ({"ms": None, "problem": "no answer within 10 s"}, "fail"),
    ):
        assert told(tmp_path, {"version": "2"}, tools=tools)["tools"].state == state


def test_without_any_coding_agent_nothing_works(tmp_path: Path) -> None:
    assert told(tmp_path, {"problem": "not found"})["agents"].state == "fail"


def test_where_an_agent_is_the_scripted_one_no_other_is_needed(tmp_path: Path) -> None:
    found = told(tmp_path, {"problem": "not found"}, demo=True)["agents"]
    assert (found.state, found.detail) == ("warn", "only the scripted demo can be used")


@pytest.mark.parametrize(("off_s", "state"), [(0, "ok"), (-120, "warn"), (120, "warn")])
def test_a_clock_that_is_off_is_told(off_s: int, state: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=off_s), usegmt=True)
    assert asked.clock(date).state == state


def test_an_agents_folder_must_be_there(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "default")
    (tmp_path / "src").mkdir()
    names: dict[str, tuple[str, str | None]] = {
        "agent_1": ("shop", str(tmp_path / "src")),
        "agent_2": ("docs", str(tmp_path / "gone")),
    }
    found = {one.name: one for one in machine.agents(paths, names)}
    assert found["shop"].state == "ok"
    assert (found["docs"].state, found["docs"].fix) == ("fail", f"mkdir -p {tmp_path / 'gone'}")


def test_a_damaged_queue_is_a_failure_and_one_set_aside_is_told(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "default")
    paths.state_dir.mkdir(parents=True)
    (paths.state_dir / "state.db").write_bytes(b"no database" * 100)
    assert machine._spool(paths, ours).state == "fail"


# --- the command ------------------------------------------------------------------------------


async def test_a_running_daemon_is_asked_what_it_sees(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            _, out, error = await home.command("doctor", "--json")
            body, found = json.loads(out), by_name(out)
    assert (body["schema"], body["checked_in"]) == ("cloudagent.doctor/1", "daemon")
    assert error == ""
    assert KEY not in out
    known = [
        "config",
        "files",
        "queue",
        "link",
        "connection",
        "server",
        "protocol",
        "clock",
        "daemon",
    ]
    for name in [*known, "machine key", "round trip"]:
        assert found[name]["state"] == "ok", found[name]
    assert found["websocket"]["state"] == "ok"
    assert found["tools"]["detail"].startswith(("start in", "take"))
    assert len(backend.connections) == 1  # the try took nobody's place


async def test_without_a_daemon_it_looks_by_itself_and_goes_on_after_failures(home: Home) -> None:
    code, out, _ = await home.command("doctor")
    assert code == 1
    assert out.startswith("✗ config       not logged in")
    assert "Runtimes\n" in out
    assert "checked in this process: no daemon answers" in out
    async with scripted_backend() as backend:
        await home.log_in(backend)
    code, out, _ = await home.command("doctor", "--json")
    found = by_name(out)
    assert found["connection"]["state"] == "fail"
    assert "is the backend running there" in found["connection"]["fix"]
    assert found["server"]["detail"] == "not tried: see above"
    assert found["daemon"]["fix"] == "cloudagent-daemon start"


async def test_a_rejected_key_names_the_way_out(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        file = home.state / "config.json"
        file.write_text(file.read_text().replace(KEY, "sk_machine_" + "x" * 46))
        _, out, _ = await home.command("doctor", "--json")
        assert by_name(out)["machine key"]["state"] == "fail"
        assert by_name(out)["machine key"]["fix"].startswith("cloudagent-daemon login")


def test_a_key_is_not_sent_over_a_way_that_nobody_checks(home: Home) -> None:
    stored = config.Stored("http://agents.example.com", KEY, "host_1")
    file = home.state / "config.json"
    for url, sent in [
        ("http://agents.example.com", False),
        ("https://agents.example.com", True),
        ("http://127.0.0.1:8700", True),
    ]:
        config.write_file(file, replace(stored, server_url=url))
        settings = profile.settings_of("default", {"CLOUDAGENT_HOME": str(home.state.parent)})
        looked, why_not = examine.looked_at(settings)
        assert (looked.machine_key, why_not == "") == (KEY if sent else None, sent)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (None, [("daemon", "ok"), ("unit", "skip")]),
        (SERVICE, [("daemon", "ok"), ("unit", "ok")]),
        (
            SERVICE | {"same_program": False, "program": "/old/bin/cloudagent-daemon"},
            [("daemon", "ok"), ("unit", "ok"), ("program", "warn")],
        ),
        (SERVICE | {"lingers": False}, [("daemon", "ok"), ("unit", "ok"), ("linger", "warn")]),
        (SERVICE | {"lingers": True}, [("daemon", "ok"), ("unit", "ok")]),
    ],
)
def test_a_service_is_told_with_what_is_amiss(
    kept: dict[str, Any] | None, expected: list[tuple[str, str]]
) -> None:
    found = asked.service({"pid": 4711, "service": kept}, ours)
    assert [(one.name, one.state) for one in found] == expected
    assert all(one.fix for one in found if one.state == "warn")
    assert "4711" in found[0].detail


def test_without_a_daemon_its_start_is_the_fix() -> None:
    [found] = asked.service(None, lambda words: f"{ours(words)} --profile fr")
    assert (found.state, found.fix) == ("fail", "cloudagent-daemon start --profile fr")


def test_a_service_that_cannot_run_now_is_told_with_a_way_without_it() -> None:
    why = "nobody is logged in at this computer's screen"
    [_, session] = asked.service(None, ours, why)
    assert (session.name, session.state) == ("session", "fail")
    assert why in session.detail
    assert session.fix.startswith("cloudagent-daemon start --background")
    report = {"pid": 4711, "service": SERVICE}
    found = asked.service(report, ours, why)
    states = [(one.name, one.state) for one in found]
    assert states == [("daemon", "ok"), ("session", "warn"), ("unit", "ok")]


async def test_fix_does_what_is_safe_says_it_and_looks_again(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        (home.state / "config.json").chmod(0o644)
        home.state.chmod(0o755)
        (home.state / "daemon.pid").write_text("1\n")
        _, out, _ = await home.command("doctor", "--json")
        assert [by_name(out)[n]["state"] for n in ("config", "files", "leftovers")] == [
            "fail",
            "fail",
            "warn",
        ]
        _, out, error = await home.command("doctor", "--fix")
        assert error.count("fixed  ") == 3
        assert "✓ machine key  accepted for mbp" in out
    assert (home.state / "config.json").stat().st_mode & 0o777 == 0o600
    assert home.state.stat().st_mode & 0o777 == 0o700
    assert not (home.state / "daemon.pid").exists()


if __name__ == "__main__":
    text = "\n".join(findings.lines(example(), where="in the running daemon")) + "\n"
    GOLDEN.write_text(text, "utf-8")
    for one in STATES:
        GOLDEN.with_stem(f"doctor-{one}").write_text(told_in(one), "utf-8")
