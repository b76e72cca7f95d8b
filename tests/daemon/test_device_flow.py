"""How a machine waits for its approval: when it asks, and what the answers mean."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.device_flow import Codes, DeviceFlow, Ended, Issued, NoCodesError, read_codes

BODY = {
    "device_code": "secret",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://agents.example.com/device",
    "verification_uri_complete": "https://agents.example.com/device?code=WDJB-MJHT",
    "expires_in": 600,
    "interval": 5,
}
TOKEN = {
    "access_token": "sk_machine_x",
    "host_id": "host_1",
    "host_name": "mbp",
    "approved_by": "ana@example.com",
}


def flow() -> DeviceFlow:
    return DeviceFlow(read_codes(BODY), now=1_000)


def refused(error: str) -> dict[str, Any]:
    return {"error": error, "code": error}


def test_codes_are_read_with_the_defaults_of_the_rfc() -> None:
    assert read_codes(BODY) == Codes(
        "secret",
        "WDJB-MJHT",
        "https://agents.example.com/device",
        "https://agents.example.com/device?code=WDJB-MJHT",
        600,
        5,
    )
    short = {k: BODY[k] for k in ("device_code", "user_code", "verification_uri")}
    codes = read_codes(short)
    assert (codes.url_with_code, codes.interval_s) == (codes.url, 5)
    assert "secret" not in repr(codes)


@pytest.mark.parametrize(
    "change",
    [{"device_code": ""}, {"user_code": 7}, {"verification_uri": "javascript:alert(1)"}],
)
def test_an_answer_without_codes_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(NoCodesError):
        read_codes(BODY | change)


def test_a_server_cannot_make_it_ask_without_a_pause_or_wait_for_ever() -> None:
    hurried = read_codes(BODY | {"interval": 0, "expires_in": 1e12})
    assert (hurried.interval_s, hurried.expires_in_s) == (1, 3_600)
    assert read_codes(BODY | {"interval": 1e9}).interval_s == 60
    for nonsense in (-1, "soon", None, True, float("nan")):
        codes = read_codes(BODY | {"interval": nonsense, "expires_in": nonsense})
        assert (codes.interval_s, codes.expires_in_s) == (5, 3_600)


def test_it_asks_every_interval_until_the_answer() -> None:
    wait = flow()
    assert wait.next_at == 1_005
    assert wait.answered(400, refused("authorization_pending"), 1_005) is None
    assert wait.next_at == 1_010
    issued = wait.answered(200, TOKEN, 1_010)
    assert issued == Issued("sk_machine_x", "host_1", "mbp", "ana@example.com", False)
    assert "sk_machine_x" not in repr(issued)


def test_slow_down_makes_each_later_interval_five_seconds_longer() -> None:
    wait = flow()
    assert wait.answered(400, refused("slow_down"), 1_005) is None
    assert wait.next_at == 1_015
    assert wait.answered(400, refused("authorization_pending"), 1_015) is None
    assert wait.next_at == 1_025


@pytest.mark.parametrize(
    ("status", "body", "end"),
    [
        (400, refused("access_denied"), Ended.DENIED),
        (400, refused("expired_token"), Ended.EXPIRED),
        (400, refused("invalid_grant"), Ended.VOID),
        (400, {"error": "access_denied"}, Ended.DENIED),
        (400, {"code": "access_denied"}, Ended.DENIED),
        (400, {}, Ended.STRANGE),
        (404, {"code": "not_found"}, Ended.STRANGE),
        (302, {}, Ended.STRANGE),
        (200, {}, Ended.STRANGE),
        (200, TOKEN | {"access_token": 7}, Ended.STRANGE),
    ],
)
def test_what_ends_it(status: int, body: dict[str, Any], end: Ended) -> None:
    assert flow().answered(status, body, 1_005) is end


def test_a_network_or_a_server_that_fails_is_asked_less_often_and_not_given_up() -> None:
    wait = flow()
    wait.unanswered(1_005)
    assert wait.next_at == 1_015
    assert wait.answered(502, {}, 1_015) is None
    assert wait.next_at == 1_035
    assert wait.answered(429, {}, 1_035, retry_after_s=90) is None
    assert wait.next_at == 1_125


def test_it_is_over_when_the_code_is() -> None:
    wait = flow()
    assert not wait.expired(1_599)
    assert wait.expired(1_600)


@given(
    st.lists(
        st.one_of(
            st.sampled_from([(400, refused("slow_down")), (400, refused("authorization_pending"))]),
            st.tuples(st.sampled_from([429, 500, 502]), st.just({})),
        )
    )
)
def test_it_never_asks_sooner_than_the_interval(answers: list[tuple[int, dict[str, Any]]]) -> None:
    wait, now = flow(), 1_005.0
    for status, body in answers:
        assert wait.answered(status, body, now) is None
        assert 5 <= wait.next_at - now <= 60
        now = wait.next_at
