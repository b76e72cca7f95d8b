"""What a person decides, when the frame that says so is lost, doubled or cut off."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from e2e.harness import Follower, Json
from faults.history import Reply, Spawned
from faults.proxy import Direction, Duplicate, Gap, LimitData, Toxic
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, FULL, MARKS, MESSAGES, seeded

pytestmark = MARKS
#: A decision that cannot be seen to have been acted on twice could be any other one.
DECISIONS = ("once", "deny")


def decide(frame: Json) -> bool:
    return frame.get("type") == "decide"


def resolved(frame: Json) -> bool:
    return frame.get("event", {}).get("type") == "approval_resolved"


#: Those that a new connection does not mend come last.
FAULTS: tuple[Callable[[], tuple[Toxic, Direction]], ...] = (
    lambda: (Duplicate(), "down"),
    lambda: (LimitData(60, reset=True), "down"),
    lambda: (LimitData(60, reset=True), "up"),
    lambda: (Gap(1, resolved), "up"),
    lambda: (Gap(1, decide), "down"),
)
COUNT = MESSAGES if FULL else len(FAULTS)
#: After each cut within a minute the daemon waits longer before it connects again.
CUTTING = range(len(FAULTS) * 2)


@seeded
def test_a_decision_that_is_lost_doubled_or_cut_off_is_acted_on_once(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    made = site(tmp_path, AGENTS, proxied=True, CLOUDAGENT_BACKEND_LEASE_S="1")
    with made as place, place.daemon(), place.backend.follow() as events:
        place.post(COUNT, '@@may Bash {"command": "make it"}', "@@answer done #1")
        said: dict[str, str] = {}
        for number in range(COUNT):
            approval = next_request(events)
            said[approval] = chance.choice(DECISIONS)
            decide_under(place, approval, said[approval], fault_of(number))
        place.settle(deadline_s=DEADLINE_S * 2)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == COUNT
        assert {approval: done(place, approval) for approval in said} == said
        assert sorted(heard(place)) == sorted(said.values())


def fault_of(number: int) -> tuple[Toxic, Direction]:
    toxic, direction = FAULTS[number % len(FAULTS)]()
    if isinstance(toxic, LimitData) and number not in CUTTING:
        return Duplicate(), direction
    return toxic, direction


def next_request(events: Follower) -> str:
    return events.until(lambda event: event["type"] == "approval.requested", DEADLINE_S)["data"][
        "id"
    ]


def decide_under(place: Site, approval: str, decision: str, fault: tuple[Toxic, Direction]) -> None:
    toxic, direction = fault
    proxy = place.proxy
    assert proxy
    with proxy.toxic(toxic, direction, current=isinstance(toxic, LimitData)):
        before = sum(decide(one.frame) for one in proxy.seen)
        place.backend.call("POST", f"/v1/approvals/{approval}", {"decision": decision})
        proxy.until(lambda _: sum(decide(one.frame) for one in list(proxy.seen)) > before)
        if isinstance(toxic, Gap):
            proxy.until(lambda _: toxic.lost_at != [])


def done(place: Site, approval: str) -> str:
    """What the machine says that it did; the person's decision, if it was acted on."""
    shown = place.backend.call("GET", f"/v1/approvals/{approval}")
    assert shown["state"] == "resolved", shown
    return shown["decision"]


def heard(place: Site) -> list[str]:
    """What the agents' programs were answered, each as often as they were."""
    answers: list[str] = []
    for one in place.places:
        for run in place.backend.call("GET", f"/v1/conversations/{one.conversation}/runs")["data"]:
            for event in place.backend.call("GET", f"/v1/runs/{run['id']}/events")["data"]:
                if event["type"] == "text" and '"behavior"' in event["text"]:
                    allowed = json.loads(event["text"])["behavior"] == "allow"
                    answers.append("once" if allowed else "deny")
    return answers
