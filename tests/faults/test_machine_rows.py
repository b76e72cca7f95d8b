"""Rows of the fault matrix about the machine itself: its key, its state, its clock, its resolver."""

import time
from pathlib import Path

import psutil

from faults.history import Done, Spawned
from faults.site import count, site
from faults.sizes import AGENTS, MARKS, MESSAGES, SLACK_S, seeded

pytestmark = MARKS


def files_with(folder: Path, secret: str) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if secret.encode() in path.read_bytes()]


@seeded
def test_row34_a_key_revoked_in_the_middle_of_runs_stops_them_and_leaves_nothing(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        with place.daemon() as daemon, place.backend.follow() as events:
            place.post(AGENTS, "@@children 2", "@@hold")
            place.post(MESSAGES - AGENTS)
            place.until_held(events, AGENTS)
            left = place.alive()
            assert len(left) >= 3 * AGENTS
            place.backend.call("DELETE", f"/v1/host-machines/{place.host}")
            daemon.wait_for_line("not connected", deadline_s=2 + SLACK_S)
            began = time.monotonic()
            _, survivors = psutil.wait_procs(left, timeout=15)
            assert not survivors
            assert time.monotonic() - began <= 15
            place.settle()
            # It stays up, says so, and what waits is not begun.
            assert daemon.popen.poll() is None
            assert not place.alive()
        history = place.judge()
        assert count(history, Spawned) == AGENTS
        outcomes = {record.outcome for record in history if isinstance(record, Done)}
        assert not outcomes & {"replied", "auto_published"}
        assert place.key not in daemon.output
        [config] = files_with(tmp_path / "laptop", place.key)
        assert config.name == "config.json"
        assert not files_with(tmp_path / "agents", place.key)
