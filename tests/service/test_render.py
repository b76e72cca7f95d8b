"""What service managers are told: the shape, and that no value can change its meaning."""

import os
import plistlib
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloudagent_daemon.service import render
from cloudagent_daemon.service.render import Service, UnusableValueError

TEMPLATES = Path(__file__).parents[2] / "service_templates"
ANA = Service(
    profile="default",
    version="0.3.0",
    program="/home/ana/.local/share/uv/tools/cloudagent-daemon/bin/cloudagent-daemon",
    options=(),
    path="/home/ana/.nvm/versions/node/v22.1.0/bin:/usr/local/bin:/usr/bin:/bin",
    environment_file=Path("/home/ana/.cloudagent/daemon/service.env"),
    logs_dir=Path("/home/ana/.cloudagent/daemon/logs"),
)
HOSTILE = [
    "a\nExecStartPre=/bin/rm -rf /",
    "\\",
    '"',
    'x" ; "/bin/sh',
    "%h %n %% %",
    "$HOME ${HOME} $$",
    ";",
    "a b\tc",
    "'",
    "\\n",
    "ü😀 [glob]*?",
    "#",
    "-",
    "",
]


def parsed(text: str) -> dict[str, list[str]]:
    """A unit as systemd.syntax(7) reads it: settings with their values, sections and comments off."""
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line and line[0] not in "#;[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def words(value: str, *, dollars: bool) -> list[str]:
    """The words of a setting, unquoted, unescaped and with specifiers put in: our own reading."""
    assert "%" not in value.replace("%%", ""), value
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|([^\s"\\]+)', value)
    result = [
        re.sub(
            r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), quoted or raw
        )
        for quoted, raw in found
    ]
    if dollars:
        assert all("$" not in word.replace("$$", "") for word in result[1:]), value
        result[1:] = [word.replace("$$", "$") for word in result[1:]]
    return [word.replace("%%", "%") for word in result]


def can_be_told(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not any(
        (c < " " and c not in "\t\n")
        or c == "\x7f"
        or ord(c) & 0xFFFE == 0xFFFE
        or "\ufdd0" <= c <= "\ufdef"
        for c in text
    )


# --- the shape ---


def test_the_unit_is_the_one_that_the_template_explains() -> None:
    template = (TEMPLATES / "cloudagent-daemon.service").read_text()
    mark, *lines = template.splitlines()
    bare = [line for line in lines if not line.startswith("#")]
    assert [line for line in render.unit(ANA).splitlines()[1:] if line] == list(filter(None, bare))
    assert render.unit(ANA).splitlines()[0] == mark


def test_the_agent_is_the_one_that_the_template_shows() -> None:
    moved = {
        name: value.replace("/home/", "/Users/").replace("/usr/local/bin", "/opt/homebrew/bin")
        for name, value in vars(ANA).items()
        if isinstance(value, str)
    }
    mac = replace(
        ANA,
        **moved,
        environment_file=Path("/Users/ana/.cloudagent/daemon/service.env"),
        logs_dir=Path("/Users/ana/.cloudagent/daemon/logs"),
    )
    assert render.plist(mac).decode() == (TEMPLATES / "chat.cloudagent.daemon.plist").read_text()


def test_the_unit_says_all_that_it_must() -> None:
    unit = parsed(render.unit(ANA))
    for name, value in {
        "Type": "notify",
        "NotifyAccess": "main",
        "WatchdogSec": "60",
        "Restart": "always",
        "RestartSec": "5",
        "StartLimitIntervalSec": "0",
        "RestartForceExitStatus": "75",
        "RestartPreventExitStatus": "78",
        "KillMode": "mixed",
        "TimeoutStopSec": "90",
        "Delegate": "yes",
        "OOMPolicy": "continue",
        "UMask": "0077",
        "WantedBy": "default.target",
        "EnvironmentFile": "-/home/ana/.cloudagent/daemon/service.env",
    }.items():
        assert unit[name] == [value], name
    harmful = (  # they break node, bwrap or the daemon, or do nothing in a user unit
        "MemoryDenyWriteExecute", "SystemCallFilter", "RestrictNamespaces",
        "RestrictAddressFamilies", "ProtectSystem", "ProtectHome", "PrivateDevices",
    )  # fmt: skip
    assert not set(harmful) & set(unit)


def test_each_profile_has_a_unit_and_a_label_of_its_own() -> None:
    french = replace(ANA, profile="fr")
    assert render.unit_name("default") == "cloudagent-daemon.service"
    assert render.unit_name("fr") == "cloudagent-daemon-fr.service"
    assert (render.label("default"), render.label("fr")) == (
        "chat.cloudagent.daemon",
        "chat.cloudagent.daemon.fr",
    )
    assert words(parsed(render.unit(french))["ExecStart"][0], dollars=True)[1:] == [
        "start",
        "--service",
        "--profile",
        "fr",
    ]
    assert plistlib.loads(render.plist(french))["ProgramArguments"][1:] == french.arguments


def test_what_we_wrote_is_told_from_what_others_wrote() -> None:
    assert render.is_ours(render.unit(ANA))
    assert render.is_ours(render.plist(ANA).decode())
    assert not render.is_ours("[Unit]\nDescription=managed by cloudagent-daemon\n")
    assert not render.is_ours("")
    assert render.program_of(render.unit(ANA)) == ANA.program
    assert render.program_of(render.plist(ANA).decode()) == ANA.program
    assert render.program_of("[Service]\nExecStart=/bin/true\n") is None


# --- values ---


@given(st.text(max_size=60), st.text(max_size=60))
@example("\ud800", "")
@example("", "\ufffe")
@settings(max_examples=300)
def test_a_value_means_itself_or_is_refused(path: str, option: str) -> None:
    service = replace(ANA, path=path, options=("--ca-file", option))
    if not (can_be_told(path) and can_be_told(option)):
        with pytest.raises(UnusableValueError):
            render.unit(service)
        return
    unit = parsed(render.unit(service))
    assert set(unit) == set(parsed(render.unit(ANA)))
    assert all(len(values) == 1 for values in unit.values())
    assert words(unit["Environment"][0], dollars=False) == [f"PATH={path}"]
    assert words(unit["ExecStart"][0], dollars=True) == [service.program, *service.arguments]


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=200)
def test_a_property_list_holds_each_value_as_it_is(path: str, option: str) -> None:
    service = replace(ANA, path=path, options=(option,))
    try:
        body = plistlib.loads(render.plist(service))
    except UnusableValueError:
        assert not (can_be_told(path) and can_be_told(option))
        return
    # A property list has no other line ends (XML, section 2.11).
    assert body["EnvironmentVariables"] == {"PATH": path}
    assert body["ProgramArguments"] == [service.program, *service.arguments]
    assert set(body) == set(plistlib.loads(render.plist(ANA)))


@pytest.mark.parametrize("path", ["/opt/o'brien/bin/x", '/opt/"/x', "/opt/a\\b", "/opt/a\nb"])
def test_a_program_that_systemd_would_not_start_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(UnusableValueError, match="starts no program"):
        render.unit(replace(ANA, program=path))


def test_a_value_of_64_kb_is_told_and_one_that_no_process_could_get_is_refused() -> None:
    long = "/x" * 32_768
    assert words(parsed(render.unit(replace(ANA, path=long)))["Environment"][0], dollars=False) == [
        f"PATH={long}"
    ]
    with pytest.raises(UnusableValueError, match="too long"):
        render.unit(replace(ANA, path=long * 2))


@pytest.mark.slow
def test_systemd_itself_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    program = tmp_path / "a b %n $HOME é" / "cloudagent-daemon"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    files: list[Path] = []
    for number, text in enumerate(HOSTILE):
        service = replace(
            ANA,
            profile=f"p{number}",
            program=str(program),
            options=("--ca-file", text),
            environment={"CLOUDAGENT_HOME": text},
            environment_file=tmp_path / text.replace("\n", " ") / "service.env",
        )
        files.append(tmp_path / render.unit_name(service.profile))
        files[-1].write_text(render.unit(service))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, files)],
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": os.defpath, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
