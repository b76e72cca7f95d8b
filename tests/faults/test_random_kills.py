"""Either side is killed again and again, at any moment, and nothing is lost, doubled or left behind.

For 20 s; FAULTS_KILLS_S=300 is the run that counts.
"""

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from e2e.harness import Process
from faults.history import Reply
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, SEEDS

FOR_S = float(os.environ.get("FAULTS_KILLS_S", "20"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(FOR_S * 3 + 300)]


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_either_side_every_50_to_500_ms_loses_and_doubles_nothing(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with site(tmp_path, AGENTS) as place, contextlib.ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        end = time.monotonic() + FOR_S
        kills = 0
        while time.monotonic() < end:
            place.post(chance.randrange(3), acked=False)
            # The moment is what chance is about; there is nothing to wait for.
            threading.Event().wait(chance.uniform(0.05, 0.5))
            whom = chance.choice(["daemon", "backend", "both"])
            if whom != "daemon":
                place.backend.process.kill()
                place.backend.start_again()
                place.post_again()
            if whom != "backend" or chance.random() < 0.5:
                daemon = kill_and_start_again(place, daemon, stack)
            kills += 1
        daemon.kill()
        place.post_again()
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S + FOR_S)
        history = place.judge(repeats=True)
        assert kills > FOR_S / 4
        assert count(history, Reply) <= len(place.recorder.posts)
        gone_within(place, 5)


def kill_and_start_again(place: Site, daemon: Process, stack: contextlib.ExitStack) -> Process:
    """What the killed daemon's agents had started is gone before the next life's are."""
    left = place.alive()
    daemon.kill()
    _, survivors = psutil.wait_procs(left, timeout=5)
    assert not survivors
    # Not until it is connected: it may be killed while it starts, too.
    return stack.enter_context(place.daemon(wait_for=""))


def gone_within(place: Site, seconds: float) -> None:
    left = place.alive()
    _, survivors = psutil.wait_procs(left, timeout=seconds)
    assert not survivors
