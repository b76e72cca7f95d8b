"""The daemon's own files are hidden from agents where the daemon is an ordinary user's, as on most machines.

Every way of `tests/daemon/test_mask.py`, which a gate may run as root, by ana.
"""

import sys
from pathlib import Path

from daemon.test_mask import WAYS
from service.machine import machine

TESTS = Path(__file__).parents[1]
TRIED = """
import os, anyio
from pathlib import Path
from cloudagent_daemon.leash import Mask
from daemon.test_mask import CANARY, WAYS, make_home, mask_of, output_of

async def main():
    home = make_home(Path.home())
    hiding = await mask_of(home)
    for mask, ways in ((hiding, WAYS), (Mask(), WAYS[:1])):
        for way in ways:
            print(os.geteuid(), "open" if CANARY in await output_of(home, mask, way) else "hidden")

anyio.run(main)
"""


def test_agents_of_an_ordinary_user_find_no_way_to_the_daemon_s_files(tmp_path: Path) -> None:
    with machine(tmp_path) as made:
        tried = made.run("env", f"PYTHONPATH={TESTS}", sys.executable, "-c", TRIED)
    lines = tried.stdout.splitlines()
    assert len(lines) == len(WAYS) + 1, tried.stderr
    assert "0" not in {line.split()[0] for line in lines}
    *masked, bare = lines
    assert not [way for way, line in zip(WAYS, masked, strict=True) if line.endswith("open")]
    # Else that would show nothing.
    assert bare.endswith("open")
