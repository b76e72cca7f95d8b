"""Which connection is a host's, and which hosts take work: the hub's rules, without sockets."""

import pytest

from cloudagent_backend.delivery.hub import Hub, Session
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import Capability
from cloudagent_protocol.ids import HostId

MBP, NAS, JOB = HostId("host_mbp"), HostId("host_nas"), HostId("host_job")


def session(host: HostId = MBP, life: str = "one", parent: HostId | None = None) -> Session:
    return Session(host, life, parent)


def ready(hub: Hub, made: Session) -> Session:
    assert hub.attach(made)
    made.ready = True
    return made


def test_a_host_takes_work_from_its_welcome_on() -> None:
    hub, made = Hub(), session()
    assert hub.ready(MBP) is None
    assert not hub.here(MBP)
    hub.attach(made)
    assert hub.here(MBP)
    assert (hub.ready(MBP), hub.all_ready()) == (None, [])
    made.ready = True
    found = hub.ready(MBP)
    assert found
    assert (found.id, found.interrupts) == (MBP, False)
    assert hub.all_ready() == [found]
    assert hub.connected == 1


def test_what_a_daemon_can_do_is_known_with_its_readiness() -> None:
    hub, made = Hub(), Session(MBP, "one", capabilities=[Capability.INTERRUPT_MODE, "fly"])
    ready(hub, made)
    found = hub.ready(MBP)
    assert found
    assert found.interrupts


def test_one_that_drains_takes_nothing_and_again_when_it_does_not() -> None:
    hub, made = Hub(), Session(JOB, "one", MBP, draining=True)
    ready(hub, made)
    assert (hub.ready(JOB), hub.helpers(MBP)) == (None, [])
    made.draining = False
    assert hub.ready(JOB)
    assert hub.helpers(MBP) == [JOB]


def test_the_newest_connection_of_a_daemon_closes_its_older_one() -> None:
    hub = Hub()
    dead, older, newer = (ready(hub, session()) for _ in range(3))
    assert dead.closed
    assert (older.closed, older.close_code) == (True, CloseCode.SUPERSEDED)
    assert not newer.closed
    assert not hub.detach(older)
    assert hub.here(MBP)
    assert hub.detach(newer)
    assert not hub.here(MBP)


def test_of_two_daemons_the_older_may_come_back_only_when_the_newer_has_left() -> None:
    hub = Hub()
    ready(hub, session(life="older"))
    newer = ready(hub, session(life="newer"))
    again = session(life="older")
    assert not hub.attach(again)
    assert (again.closed, again.close_code) == (True, CloseCode.SUPERSEDED)
    assert not newer.closed
    # The newer one may connect anew all the time, and stays the one.
    newer = ready(hub, session(life="newer"))
    assert not hub.attach(session(life="older"))
    hub.detach(newer)
    for _ in range(2):  # and is the one from then on
        assert hub.attach(session(life="older"))


def test_another_hosts_daemon_is_nobodys_rival() -> None:
    hub = Hub()
    mine, other = ready(hub, session()), ready(hub, session(NAS))
    assert not mine.closed
    assert not other.closed
    hub.detach(other)
    assert [one.id for one in hub.all_ready()] == [MBP]


def test_helpers_are_those_of_a_host_that_take_work() -> None:
    hub = Hub()
    helper, other = session(JOB, parent=MBP), session(HostId("host_job2"), parent=MBP)
    hub.attach(helper)
    assert hub.helpers(MBP) == []
    helper.ready = True
    ready(hub, other)
    assert hub.helpers(MBP) == [JOB, other.host_id]
    assert hub.helpers(NAS) == []
    assert (hub.helps(JOB), hub.helps(MBP)) == (MBP, None)
    hub.detach(helper)
    assert hub.helpers(MBP) == [other.host_id]
    hub.detach(other)
    assert hub.helpers(MBP) == []


async def test_a_hint_says_that_a_session_is_behind_and_to_nobody_if_there_is_none() -> None:
    hub = Hub()
    made = ready(hub, session())
    made.behind = False
    hub.hint(NAS)
    hub.hint(MBP)
    assert made.behind
    assert await hub.hints.take(0.01) == [made]


async def test_the_first_reason_to_close_counts_and_is_hinted_at() -> None:
    hub = Hub()
    made = ready(hub, session())
    hub.disconnect(NAS, CloseCode.REVOKED)
    assert await hub.hints.take(0.01) == []
    hub.disconnect(MBP, CloseCode.REVOKED)
    hub.disconnect(MBP, CloseCode.RESTART)
    assert (made.closed, made.close_code) == (True, CloseCode.REVOKED)
    assert await hub.hints.take(0.01) == [made]


def test_a_backend_that_stops_closes_who_is_there_and_who_comes() -> None:
    hub = Hub()
    made = ready(hub, session())
    hub.shutdown()
    late = session(NAS)
    assert hub.attach(late)
    assert [one.close_code for one in (made, late) if one.closed] == [CloseCode.RESTART] * 2


def test_thirty_handshakes_at_once_and_then_one_every_two_seconds() -> None:
    hub = Hub()
    assert [hub.admit(MBP, 100.0) for _ in range(31)] == [True] * 30 + [False]
    assert not hub.admit(MBP, 101.9)
    assert hub.admit(NAS, 101.9)
    assert hub.admit(MBP, 102.0)
    assert not hub.admit(MBP, 103.9)
    # A long rest gives back all thirty, and not more.
    assert sum(hub.admit(MBP, 10_000.0) for _ in range(100)) == 30


def test_a_host_that_is_gone_for_good_is_forgotten() -> None:
    hub = Hub()
    for _ in range(31):
        hub.admit(MBP, 100.0)
    hub.forget(MBP)
    assert hub.admit(MBP, 100.0)


@pytest.mark.parametrize("parent", [None, MBP])
def test_who_was_never_attached_is_detached_without_harm(parent: HostId | None) -> None:
    hub = Hub()
    there = ready(hub, session(JOB, parent=parent))
    assert not hub.detach(session(JOB, parent=parent))
    assert not hub.detach(session(NAS))
    assert hub.ready(there.host_id)
