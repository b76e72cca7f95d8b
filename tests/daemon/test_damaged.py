"""Small files that were damaged, or that a newer daemon wrote: read as if they were not there."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon import lock, sockets, status
from cloudagent_daemon.cli.status import identity_of

REPORT: dict[str, Any] = {
    "schema": status.SCHEMA,
    "runtimes": [],
    "agents": [{"id": "a"}],
    "warm": [],
}
DAMAGED = [
    b"",
    b"[]",
    b"7",
    b"\xff\x00",
    b"[" * 100_000,
    json.dumps(REPORT)[:-1].encode(),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_says_nothing_and_breaks_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert status.read(file) == {}
    assert identity_of(file) == {}
    file.unlink()
    file.mkdir()
    assert status.read(file) == {}
    assert identity_of(file) == {}
    assert lock._pid(file) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "cloudagent.status/2"},
        {"agents": None},
        {"agents": ["a"]},
        {"runtimes": {"claude_code": {}}},
        {"warm": {"agent": "a"}},
    ],
)
def test_a_report_in_another_form_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "status.json"
    file.write_text(json.dumps(REPORT))
    assert status.read(file) == REPORT
    file.write_text(json.dumps(REPORT | change))
    assert status.read(file) == {}


@given(
    st.dictionaries(
        st.sampled_from(["id", "name", "driver", "cwd", "more"]),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
    )
)
def test_an_identity_has_texts_only(said: dict[str, Any]) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        json.dump(said, file)
        file.flush()
        found = identity_of(Path(file.name))
    assert set(found) <= {"name", "driver", "cwd"}
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize("content", [b"\xff\xfe", b""])
def test_a_pointer_to_nowhere_is_no_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "control.sock.path").write_bytes(content)
    assert sockets.find("control.sock", tmp_path)
