import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon import config, lock, log, profile, status
from cloudagent_daemon.config import ConfigError, Limits, NotLoggedInError, Stored
from cloudagent_daemon.log import DailyFile, Lines, logging_to, without_secrets
from cloudagent_daemon.paths import Paths

STORED = Stored("https://a.example", "sk_machine_x", "host_1")


def test_what_is_written_is_read_and_nobody_else_may(tmp_path: Path) -> None:
    path = tmp_path / "daemon" / "config.json"
    config.write_file(path, STORED)
    assert config.read_file(path) == STORED
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config.write_file(path, STORED)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="0644"):
        config.read_file(path)


SOUND = {"server_url": "https://a", "machine_key": "sk_machine_x", "host_id": "host_1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"server_url": "ftp://x"}',
        "\x00",
        "[" * 100_000,
        json.dumps(SOUND | {"schema": "new"}),
        json.dumps(SOUND | {"schema": 0}),
        json.dumps(SOUND | {"ca_file": 5}),
        json.dumps(SOUND)[:-1] + ', "max_runs": 1e999}',
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"config\.json cannot be used") as error:
        config.read_file(path)
    assert not error.value.usage


def test_a_file_of_a_newer_daemon_is_refused_with_the_repair_and_no_login_writes_over_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"schema": config.SCHEMA + 1, "servers": [SOUND]}))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="belongs to a newer version") as error:
        config.read_file(path)
    assert not error.value.replaceable
    assert "uv tool upgrade cloudagent-daemon" in error.value.next_step


def test_a_file_from_before_there_were_schemas_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SOUND))
    path.chmod(0o600)
    stored = config.read_file(path)
    assert stored
    config.write_file(path, stored)
    assert json.loads(path.read_text())["schema"] == config.SCHEMA
    assert config.read_file(path) == stored


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=5,
)


@given(name=st.sampled_from([*SOUND, "schema", *asdict(Limits()), "ca_file"]), value=json_values)
def test_whatever_a_field_holds_the_file_is_understood_or_named(name: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(SOUND | {name: value}))
        path.chmod(0o600)
        with contextlib.suppress(ConfigError):
            config.read_file(path)


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = {"CLOUDAGENT_HOME": str(tmp_path), "CLOUDAGENT_MAX_RUNS": "2"}
    kept = Stored("https://a", "sk_machine_x", "host_1", Limits(max_runs=9, stop_timeout_s=1))
    config.write_file(tmp_path / "daemon" / "config.json", kept)
    limits = profile.settings_of("default", environ).limits
    assert (limits.max_runs, limits.stop_timeout_s, limits.hang_timeout_s) == (2, 1, 1800)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MAX_RUNS", value) for value in ("many", "0", "-1", "", "2.5")),
        *(("HANG_TIMEOUT_S", value) for value in ("0", "nan", "-1")),
        ("STOP_TIMEOUT_S", "-1"),
        ("MIN_MEMORY_MB", "-1"),
        ("MIN_DISK_PERCENT", "101"),
        ("CRASH_PAUSE_S", "-1"),
        ("RUN_MEMORY_MB", "-1"),
        ("RUN_MEMORY_PERCENT", "101"),
    ],
)
def test_a_limit_out_of_range_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        config.read_limits({f"CLOUDAGENT_{name}": value}, Limits())


def test_a_limit_that_asks_for_nothing_is_possible() -> None:
    environ = {"CLOUDAGENT_MIN_MEMORY_MB": "0", "CLOUDAGENT_STOP_TIMEOUT_S": "0"}
    limits = config.read_limits(environ, Limits())
    assert (limits.min_memory_mb, limits.stop_timeout_s) == (0, 0.0)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://a.example/", "https://a.example"),
        ("a.example", "https://a.example"),
        (" http://127.0.0.1:8700 ", "http://127.0.0.1:8700"),
    ],
)
def test_a_servers_address_is_https_unless_told_otherwise(given: str, used: str) -> None:
    assert config.check_server_url(given) == used


@pytest.mark.parametrize("given", ["", "ftp://a", "https://", "https://u:p@a", "http://a:99999"])
def test_what_is_no_servers_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.check_server_url(given)
    assert error.value.usage


def test_a_child_gets_the_profile_but_never_the_key() -> None:
    environ = {"CLOUDAGENT_API_KEY": "sk_machine_x", "PATH": "/bin"}
    assert config.child_environment(environ, "fr") == {
        "PATH": "/bin",
        "CLOUDAGENT_DAEMON_PROFILE": "fr",
    }


def test_the_key_does_not_show_when_settings_are_printed(tmp_path: Path) -> None:
    environ = {"CLOUDAGENT_HOME": str(tmp_path), "SECRET": "hush"}
    config.write_file(tmp_path / "daemon" / "config.json", STORED)
    shown = repr(profile.settings_of("default", environ)) + repr(STORED)
    assert "sk_machine" not in shown
    assert "hush" not in shown


# --- profiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fr", "a", "0", "a-b", "x" * 31, "default"])
def test_names_that_profiles_may_have(name: str) -> None:
    assert profile.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "x" * 32, "../up", "a\n", "a b"])
def test_names_that_profiles_may_not_have(name: str) -> None:
    with pytest.raises(ConfigError):
        profile.check_name(name)


def test_the_default_profile_keeps_its_paths_and_named_ones_lie_beside(tmp_path: Path) -> None:
    plain, named = Paths(tmp_path, "default"), Paths(tmp_path, "fr")
    assert plain.config == tmp_path / "daemon" / "config.json"
    assert plain.agents_dir == tmp_path / "agents"
    assert named.config == tmp_path / "daemon" / "profiles" / "fr" / "config.json"
    assert named.agents_dir == tmp_path / "agents-fr"


def test_the_option_wins_over_the_environment() -> None:
    environ = {"CLOUDAGENT_DAEMON_PROFILE": "fr"}
    assert profile.chosen("de", environ) == "de"
    assert profile.chosen(None, environ) == "fr"
    assert profile.chosen(None, {}) == "default"


def test_profiles_are_those_that_were_logged_in(tmp_path: Path) -> None:
    environ = {"CLOUDAGENT_HOME": str(tmp_path)}
    assert profile.known(environ) == []
    for name in ("staging", "default", "fr"):
        config.write_file(Paths(tmp_path, name).config, STORED)
    assert profile.known(environ) == ["default", "fr", "staging"]


def test_a_profile_without_a_login_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotLoggedInError, match="fr is not logged in"):
        profile.settings_of("fr", {"CLOUDAGENT_HOME": str(tmp_path)})


def test_one_shot_leaves_nothing_behind() -> None:
    with profile.one_shot("default", "https://a", "sk_machine_x", {}) as settings:
        settings.agents_dir.mkdir()
        folder = settings.agents_dir.parent
        assert settings.one_shot
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


# --- lock, status, log --------------------------------------------------------------------


def test_the_lock_tells_whether_a_daemon_runs(tmp_path: Path) -> None:
    paths = tmp_path / "d" / "daemon.lock", tmp_path / "d" / "daemon.pid"
    assert lock.holder(*paths) is None
    with lock.hold(*paths) as held:
        assert lock.holder(*paths) == int(paths[1].read_text())
        assert held.is_whole()
        with pytest.raises(lock.AlreadyRunningError), lock.hold(*paths):
            pass
    assert lock.holder(*paths) is None
    assert not paths[1].exists()


def test_a_deleted_lock_lets_nobody_else_in_and_is_taken_anew(tmp_path: Path) -> None:
    paths = tmp_path / "daemon.lock", tmp_path / "daemon.pid"
    with lock.hold(*paths) as held:
        paths[0].unlink()
        assert not held.is_whole()
        assert lock.holder(*paths) == int(paths[1].read_text())
        with pytest.raises(lock.AlreadyRunningError), lock.hold(*paths):
            pass
        assert held.take_anew()
        assert held.is_whole()
    assert lock.holder(*paths) is None


def test_a_deleted_lock_that_somebody_else_has_taken_stays_theirs(tmp_path: Path) -> None:
    """An earlier version's daemon, say, which does not ask the folder."""
    paths = tmp_path / "daemon.lock", tmp_path / "daemon.pid"
    with lock.hold(*paths) as held:
        paths[0].unlink()
        other = paths[0].open("w")
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not held.take_anew()
    assert paths[1].exists(), "the pid in it is the other one's"
    other.close()


def test_a_pid_file_alone_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "daemon.pid").write_text("1\n")
    (tmp_path / "daemon.lock").touch()
    assert lock.holder(tmp_path / "daemon.lock", tmp_path / "daemon.pid") is None


def test_status_is_replaced_whole_and_half_a_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert status.read(path) == {}
    report = {"state": "connected", "runtimes": [], "agents": []}
    status.write(path, report)
    # An earlier daemon has said nothing of warm processes.
    assert status.read(path) == {"schema": "cloudagent.status/1", "warm": [], **report}
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({"a": 1})[:3])
    assert status.read(path) == {}


def test_keys_and_tokens_never_reach_the_log() -> None:
    text = "key sk_machine_abcDEF0123456789 token cat_0123456789 model sk-ant-api03-xyz_123"
    assert without_secrets(text) == "key sk_machine_… token cat_… model sk-…"


def test_a_key_at_the_beginning_of_a_messages_line_does_not_reach_the_log() -> None:
    for key in ("sk_machine_abcDEF0123456789", "cat_0123456789abcdef"):
        record = logging.makeLogRecord(
            {"msg": f"refused\n{key}", "levelname": "ERROR", "name": "x"}
        )
        assert key not in Lines().format(record)


def test_a_log_line_cannot_steer_a_terminal_or_pretend_to_be_two(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        try:
            int("\x1b]0;owned\x07")
        except ValueError:
            name = "shop\x9b2J\n2026-01-01T00:00:00.000Z INFO forged \ud800"
            logging.getLogger("cloudagent_daemon.x").exception("agent %s", name)
    [file] = tmp_path.iterdir()
    first, second, *rest = file.read_text("utf-8").splitlines()
    assert r"agent shop\x9b2J\n2026-01-01" in first
    assert second == "Traceback (most recent call last):"
    assert rest[-1].startswith("ValueError: ")
    assert not set("".join(rest)) & set("\x1b\x07")


def test_debugging_shows_our_own_steps_and_not_what_libraries_send(tmp_path: Path) -> None:
    with logging_to(tmp_path, debug=True):
        logging.getLogger("websockets.client").debug("> TEXT %s", "the prompt")
        logging.getLogger("cloudagent_daemon.x").debug("our step")
    [file] = tmp_path.iterdir()
    assert "our step" in file.read_text()
    assert "the prompt" not in file.read_text()


def test_a_day_has_a_log_file_and_a_full_one_goes_on_in_the_next(tmp_path: Path) -> None:
    handler = DailyFile(tmp_path, max_bytes=100)
    for second in (0, 1, 2):
        record = logging.makeLogRecord({"msg": "x" * 110, "created": 1_780_000_000 + second})
        handler.emit(record)
    handler.emit(logging.makeLogRecord({"msg": "tomorrow", "created": 1_780_090_000}))
    handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "daemon-2026-05-28.1.log",
        "daemon-2026-05-28.2.log",
        "daemon-2026-05-28.log",
        "daemon-2026-05-29.log",
    ]


def test_a_log_file_that_somebody_deletes_is_begun_again(tmp_path: Path) -> None:
    handler = DailyFile(tmp_path)
    for text in ("one", "two", "three"):
        handler.emit(logging.makeLogRecord({"msg": text, "created": 1_780_000_000}))
        if text == "one":
            (tmp_path / "daemon-2026-05-28.log").unlink()
    handler.close()
    assert (tmp_path / "daemon-2026-05-28.log").read_text() == "two\nthree\n"


@pytest.mark.parametrize(
    ("line", "kept"),
    [pytest.param(105, 5, id="five full ones"), pytest.param(0, 14, id="14 in all")],
)
def test_of_very_many_log_files_the_oldest_go(tmp_path: Path, line: int, kept: int) -> None:
    handler = DailyFile(tmp_path, max_bytes=100)
    for day in range(30):
        created = 1_780_000_000 + day * 86_400
        handler.emit(logging.makeLogRecord({"msg": "x" * line, "created": created}))
        for back, path in enumerate(sorted(tmp_path.iterdir())[::-1]):
            os.utime(path, (1_780_000_000 - back, 1_780_000_000 - back))
    handler.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == kept
    assert names[-1] == "daemon-2026-06-26.log"


def test_what_launchd_writes_is_emptied_when_it_is_too_large(tmp_path: Path) -> None:
    large, small = tmp_path / "launchd.err.log", tmp_path / "launchd.out.log"
    large.write_text("x" * 101)
    small.write_text("x" * 99)
    handler = DailyFile(tmp_path, max_bytes=100)
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    handler.close()
    assert (large.read_text(), small.read_text()) == ("", "x" * 99)


#: Writes some lines, gets no room for 200 more (with tracebacks), then room again.
FULL = """
import logging, resource, sys, time
from pathlib import Path
from cloudagent_daemon import log
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
logger = logging.getLogger("cloudagent_daemon.x")

def settle(count):
    while log.dropped() < count:
        time.sleep(0.001)  # else this thread keeps the one that writes from its work

with log.logging_to(Path(sys.argv[1]), quiet=True):
    logger.info("before")
    while not any(path.stat().st_size for path in Path(sys.argv[1]).iterdir()):
        time.sleep(0.001)  # as above; no event tells of a line that is written
    size = next(Path(sys.argv[1]).iterdir()).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limit[1]))
    for n in range(200):
        try:
            int("x")
        except ValueError:
            logger.info("lost %d", n, exc_info=True)
    settle(200)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    logger.info("after")
print(log.dropped())
"""


def test_on_a_full_disk_lines_are_dropped_and_counted_without_a_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("200\n", "")
    [file] = tmp_path.iterdir()
    before, gap, after = file.read_text().splitlines()
    assert before.endswith("before")
    assert gap == "[200 line(s) are missing here: the disk was full]"
    assert after.endswith("after")


def test_lines_that_come_faster_than_they_are_written_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "WAITING", 1)
    with logging_to(tmp_path):
        logger = logging.getLogger("cloudagent_daemon.x")
        while not log.dropped():
            logger.info("again")


def test_a_status_has_room_on_a_full_disk(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from cloudagent_daemon import status
path = Path(sys.argv[1])
lists = {"runtimes": [], "agents": []}
status.write(path, {"state": "connected", **lists})
# No new file may be longer than nothing; what is there may be written over.
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, -1))
import errno, os
replace = os.replace
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
Path.write_bytes = full
status.write(path, {"state": "connecting", **lists})
print(status.read(path)["state"], sorted(one.name for one in path.parent.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "status.json")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "connecting ['status.json']\n"
