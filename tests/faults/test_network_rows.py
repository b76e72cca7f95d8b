"""Rows of the fault matrix in which the network is slow, loses, or leaves something out."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from e2e.harness import Json, executed
from faults.history import Reply, Spawned
from faults.proxy import BOTH, Bandwidth, Direction, Gap, Latency, Loss
from faults.site import Site, count, site
from faults.sizes import AGENTS, CUTS, DEADLINE_S, FULL, MARKS, MESSAGES, SILENCE_S, seeded

pytestmark = MARKS
#: Whether a frame is meant.
Frames: TypeAlias = Callable[[Json], bool]
MACHINE = Path(__file__).parent / "machine"
OUTAGE_S = 300 if FULL else 5


@seeded
@pytest.mark.timeout(900)
def test_row26_2_s_of_latency_and_5_percent_loss_make_no_link_flap(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS, proxied=True) as place, place.daemon():
        assert place.proxy
        place.proxy.add(Latency(2.0, jitter_s=0.2))
        place.proxy.add(Loss(0.05, rto_s=1.0))
        end = time.monotonic() + (600 if FULL else 0)
        rounds = 10 if FULL else 1
        for number in range(rounds):
            place.post(MESSAGES // rounds + (number < MESSAGES % rounds))
            place.settle(deadline_s=DEADLINE_S * 2)
            # The link is quiet for the rest, but for what keeps it alive.
            share = (end - time.monotonic()) / (rounds - number)
            if share > 0:
                place.proxy.never(lambda p: p.count("welcome") > 1, share)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
        assert place.proxy.count("welcome") == 1


@seeded
@pytest.mark.timeout(900)
def test_row27_at_8_kb_per_s_large_frames_pass_and_the_link_lives(
    tmp_path: Path, seed: int
) -> None:
    # Both ways, a frame takes longer than silence may last; a text has 100,000 characters at most.
    rate = 3_000 if FULL else 8_000
    large = rate * (SILENCE_S + 4)
    with (
        site(tmp_path, AGENTS, proxied=True, CLOUDAGENT_BACKEND_SILENCE_S=str(SILENCE_S)) as place,
        place.daemon(),
    ):
        assert place.proxy
        place.proxy.add(Bandwidth(rate))
        place.post(1, f"@@answer_with {large} #1")
        place.post(1, "@@answer yes #1", f"and much more: {'x' * large}")
        place.post(MESSAGES - 2)
        place.settle(deadline_s=DEADLINE_S + 1.5 * MESSAGES + 4 * SILENCE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
        assert place.proxy.count("welcome") == 1


@seeded
@pytest.mark.parametrize("direction", BOTH)
def test_row30_a_gap_in_the_numbers_is_resynced_within_5_s(
    tmp_path: Path, seed: int, direction: Direction
) -> None:
    chance = random.Random(seed)
    with site(tmp_path, AGENTS, proxied=True) as place, place.daemon() as daemon:
        for _ in range(CUTS):
            lose_one(place, direction, chance.randrange(1, 4))
            daemon.wait_for_line("Connected")
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES


def finished(frame: Json) -> bool:
    return frame.get("event", {}).get("type") == "finished"


def deliver(frame: Json) -> bool:
    return frame.get("type") == "deliver"


def ack(frame: Json) -> bool:
    return frame.get("type") == "ack"


def test_a_last_frame_or_ack_that_is_lost_on_a_link_that_lives_is_made_good_by_its_lease(
    tmp_path: Path,
) -> None:
    made = site(
        tmp_path,
        1,
        proxied=True,
        CLOUDAGENT_BACKEND_LEASE_S="1",
        CLOUDAGENT_BACKEND_SILENCE_S="4",
    )
    with made as place, place.daemon():
        proxy = place.proxy
        assert proxy
        losses: list[tuple[Frames, Frames, Direction, Direction]] = [
            # What is lost, what comes again for it, and which ways these go.
            (deliver, deliver, "down", "down"),
            (ack, deliver, "up", "down"),
            (finished, finished, "up", "up"),
        ]
        for lost, again, way, back in losses:
            before = frames(place, again, back)
            with proxy.toxic(Gap(1, lost), way):
                place.post(1)
                proxy.until(lambda _, a=again, b=back, n=before: frames(place, a, b) >= n + 2)
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == len(losses)
        assert proxy.count("welcome") == 1


def frames(place: Site, wanted: Frames, direction: Direction) -> int:
    assert place.proxy
    seen = list(place.proxy.seen)
    return sum(one.direction == direction and wanted(one.frame) for one in seen)


def lose_one(place: Site, direction: Direction, frames: int) -> None:
    """So many numbered frames vanish among others; both sides are in step again within 5 s."""
    proxy = place.proxy
    assert proxy
    welcomes = proxy.count("welcome")
    gap = Gap(frames)
    with proxy.toxic(gap, direction):
        place.post(MESSAGES // (CUTS + 1))
        proxy.until(lambda p: p.count("welcome") > welcomes)
    welcome = [seen for seen in proxy.seen if seen.frame.get("type") == "welcome"][-1]
    # From the first frame that shows the gap, which comes after the last that is lost.
    assert welcome.at - gap.lost_at[-1] <= 5


@seeded
@pytest.mark.timeout(900)
def test_row31_a_resolver_that_fails_delays_and_10_s_after_it_is_back_so_is_the_link(
    tmp_path: Path, seed: int
) -> None:
    names = tmp_path / "names"
    names.write_text("backend.localhost")
    # A name under which the backend lets itself be spoken to.
    machine = {"PYTHONPATH": str(MACHINE), "FAULTS_NAMES": str(names)}
    with site(tmp_path, AGENTS, proxied=True) as place:
        assert place.proxy
        place.proxy.host = "backend.localhost"
        with place.daemon(start=executed, **machine) as daemon:
            place.proxy.host = "127.0.0.1"
            place.post(MESSAGES // 2)
            place.settle(deadline_s=DEADLINE_S)
            names.write_text("")
            place.proxy.reset()
            place.post(MESSAGES - MESSAGES // 2)
            daemon.wait_for_line("backend.localhost is not known")
            place.proxy.never(lambda p: p.count("welcome") > 1, OUTAGE_S)
            names.write_text("backend.localhost")
            daemon.wait_for_line("Connected", deadline_s=10)
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
