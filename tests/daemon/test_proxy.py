"""Which proxy leads to a server, by the environment."""

import pytest

from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.proxy import proxy_for, without_secret

HTTPS = "https://agents.example.com"
PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, HTTPS, None),
        ({"HTTPS_PROXY": PROXY}, HTTPS, PROXY),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, HTTPS, PROXY),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, HTTPS, None),
        ({"HTTP_PROXY": PROXY}, HTTPS, None),
        ({"HTTP_PROXY": PROXY}, "http://nas.local", PROXY),
        ({"ALL_PROXY": PROXY}, HTTPS, PROXY),
        ({"HTTPS_PROXY": "proxy.example:3128"}, HTTPS, PROXY),
        ({"HTTPS_PROXY": "https://proxy.example"}, HTTPS, "https://proxy.example"),
        ({"ALL_PROXY": "socks5://localhost:1080", "https_proxy": PROXY}, HTTPS, PROXY),
    ],
)
def test_the_variable_that_counts(environ: dict[str, str], url: str, expected: str | None) -> None:
    assert proxy_for(url, environ) == expected


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8700", "https://localhost", "http://[::1]:8700", "http://a.localhost"]
)
def test_this_machine_is_never_behind_a_proxy(url: str) -> None:
    environ = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY}
    assert proxy_for(url, environ) is None


@pytest.mark.parametrize(
    ("no_proxy", "spared"),
    [
        ("*", True),
        ("agents.example.com", True),
        ("AGENTS.example.COM", True),
        (".example.com", True),
        ("example.com", True),
        ("*.example.com", True),
        ("other.com, agents.example.com ,x", True),
        ("agents.example.com:443", True),
        ("agents.example.com:8443", False),
        ("ample.com", False),
        ("xagents.example.com", False),
        ("", False),
        (",,", False),
        ("10.0.0.0/8", False),
    ],
)
def test_no_proxy_spares_what_it_names(no_proxy: str, spared: bool) -> None:
    found = proxy_for(HTTPS, {"HTTPS_PROXY": PROXY, "no_proxy": no_proxy})
    assert (found is None) == spared


@pytest.mark.parametrize(
    ("url", "no_proxy", "spared"),
    [
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://10.1.2.3", "10.1.2.3", True),
        ("https://10.1.2.3:8443", "10.1.2.3:8443", True),
        ("https://11.1.2.3", "10.0.0.0/8", False),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://[fd00::1]", "[fd00::1]", True),
    ],
)
def test_addresses_are_spared_by_network(url: str, no_proxy: str, spared: bool) -> None:
    found = proxy_for(url, {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert (found is None) == spared


@pytest.mark.parametrize(
    "value",
    ["socks5://localhost:1080", "ftp://x", "http://", "http://x:0", "http://x:y", "http://u@x"],
)
def test_what_is_no_http_proxy_is_named_without_its_password(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        proxy_for(HTTPS, {"HTTPS_PROXY": value})
    assert "HTTPS_PROXY" in error.value.why


def test_a_password_is_not_shown() -> None:
    assert without_secret("http://ana:s3cret@proxy.example:3128") == PROXY
    assert without_secret("http://[::1]:3128") == "http://[::1]:3128"
    with pytest.raises(ConfigError) as error:
        proxy_for(HTTPS, {"HTTPS_PROXY": "socks5://ana:s3cret@proxy.example"})
    assert "s3cret" not in f"{error.value} {error.value.why} {error.value.next_step}"
