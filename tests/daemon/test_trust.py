"""Where a machine key may be sent, and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon import trust
from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.trust import Reach

LOOPBACK = ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"]
PRIVATE = [
    "10.0.0.7",
    "192.168.1.9",
    "172.16.0.1",
    "100.64.0.3",  # an overlay network's
    "169.254.1.1",
    "fd00::1",
    "fe80::1%eth0",
    "nas",
    "nas.local",
    "build.internal",
    "server.lan",
]
PUBLIC = [
    "agents.example.com",
    "8.8.8.8",
    "2606:4700::1111",
    "100.128.0.1",
    "localhost.example.com",
    "notlocalhost.com",
    "127.0.0.1.nip.io",
    "local.example",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_is_loopback(host: str) -> None:
    assert trust.reach(host) is Reach.LOOPBACK


@pytest.mark.parametrize("host", PRIVATE)
def test_another_machine_here_is_private(host: str) -> None:
    assert trust.reach(host) is Reach.PRIVATE


@pytest.mark.parametrize("host", PUBLIC)
def test_everything_else_is_public(host: str) -> None:
    assert trust.reach(host) is Reach.PUBLIC


def judged(url: str, *options: str) -> str:
    """`ok`, `warned` or `refused`."""
    try:
        warnings = trust.check(
            url,
            insecure="--insecure" in options,
            understood="--i-understand" in options,
            again="start",
        )
    except ConfigError:
        return "refused"
    return "warned" if warnings else "ok"


ALL = ("--insecure", "--i-understand")


@pytest.mark.parametrize(
    ("url", "bare", "understood", "insecure", "both"),
    [
        ("https://agents.example.com", "ok", "ok", "refused", "warned"),
        ("https://192.168.1.9:8700", "ok", "ok", "warned", "warned"),
        ("https://localhost:8700", "ok", "ok", "warned", "warned"),
        ("http://agents.example.com", "refused", "refused", "refused", "warned"),
        ("http://nas.local:8700", "refused", "refused", "warned", "warned"),
        ("http://[fd00::1]:8700", "refused", "refused", "warned", "warned"),
        ("http://127.0.0.1:8700", "ok", "ok", "ok", "ok"),
        ("http://[::1]:8700", "ok", "ok", "ok", "ok"),
    ],
)
def test_less_than_checked_tls_is_asked_for(
    url: str, bare: str, understood: str, insecure: str, both: str
) -> None:
    assert judged(url) == bare
    assert judged(url, "--i-understand") == understood
    assert judged(url, "--insecure") == insecure
    assert judged(url, *ALL) == both


def test_the_refusal_says_why_and_what_else_there_is() -> None:
    with pytest.raises(ConfigError) as refused:
        trust.check("http://nas.local", insecure=False, understood=False, again="start")
    assert "nas.local is another machine" in refused.value.why
    assert "--ssh-tunnel" in refused.value.next_step
    assert refused.value.next_step.endswith("start --insecure")


@given(st.from_regex(r"[a-z0-9.:\[\]%-]{1,40}", fullmatch=True))
def test_no_name_is_taken_for_this_machine_that_is_not(name: str) -> None:
    if trust.reach(name) is Reach.LOOPBACK:
        plain = name.rstrip(".")
        ours = plain == "localhost" or plain.endswith(".localhost")
        assert ours or plain.startswith(("127.", "::1", "0:", "::ffff:127."))
