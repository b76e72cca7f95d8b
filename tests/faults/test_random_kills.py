"""Either side is killed again and again, at any moment, and nothing is lost, doubled or left behind.

For 6 s with people's messages, and as long with chains of agents; FAULTS_KILLS_S=300 is the run that counts.
"""

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from e2e.harness import Process
from faults.history import Acked, Linked, Record, Reply, maybe_repeated
from faults.record import told_by_agents
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, SEEDS

FOR_S = float(os.environ.get("FAULTS_KILLS_S", "6"))

LEAST_KILLS = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(FOR_S * 3 + 300)]


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_either_side_every_50_to_500_ms_loses_and_doubles_nothing(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        history = killed_at_random(place, random.Random(seed), FOR_S, place.post)
        assert count(history, Reply) <= len(place.recorder.posts)


def test_chains_of_agents_survive_kills_at_random_whole_and_each_link_once(tmp_path: Path) -> None:
    with site(tmp_path, AGENTS) as place:

        def post(count: int, *, acked: bool) -> None:
            for _ in range(count):
                number = len(place.recorder.posts)
                # Two agents further round the ring; of two only one writes to the other.
                ways = [(n % AGENTS, (n + 1) % AGENTS) for n in (number, number + 1)]
                hops = [[f"agent {to}", f"place{by}to{to}"] for by, to in ways]
                orders = f"@@tell {json.dumps(hops)}", f"@@answer about m{number} #1"
                place.post(1, *orders, acked=acked)

        history = killed_at_random(place, random.Random(7), FOR_S, post)
        links = [one for one in history if isinstance(one, Linked)]
        told = {line["child"] for line in place.recorder.lines() if line["what"] == "told"}
        delivered = {one.message for one in history if isinstance(one, Acked)}
        kept = Counter(one.cause for one in links if one.cause and one.message in delivered)
        assert kept
        # What an agent was told is stored is there; and told again only where that is told too.
        assert told <= {post.key for post in told_by_agents(place.backend)}
        again = maybe_repeated(history)
        assert all(times <= 1 + again.get(cause, 0) for cause, times in kept.items())
        assert max(one.depth for one in links) == 2


def killed_at_random(
    place: Site, chance: random.Random, for_s: float, post: Callable[..., None]
) -> list[Record]:
    """Either side is killed for so long while messages are posted; its history, without a violation."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        end = time.monotonic() + for_s
        kills = 0
        # So many at the least: a machine at work has time for two or three only, and for as many messages.
        while time.monotonic() < end or kills < LEAST_KILLS:
            post(chance.randrange(3), acked=False)
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
        assert kills > for_s / 4
        gone_within(place, 5)
        return history


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
