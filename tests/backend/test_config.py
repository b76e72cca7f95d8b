"""Settings: defaults, then the environment, then flags."""

import logging

import pytest

from cloudagent_backend import config
from cloudagent_backend.config import ConfigError
from cloudagent_backend.log import Lines, without_secrets


def test_flags_go_before_the_environment_and_that_before_the_defaults() -> None:
    found = {
        "CLOUDAGENT_BACKEND_HOST": "::1",
        "CLOUDAGENT_BACKEND_PORT": "9000",
        "CLOUDAGENT_BACKEND_DATABASE_URL": "sqlite:////x.db",
        "CLOUDAGENT_BACKEND_PUBLIC_URL": "https://Agents.example.com/",
        "CLOUDAGENT_BACKEND_OPEN_SIGNUP": "1",
        "CLOUDAGENT_BACKEND_HOP_LIMIT": "0",
        "CLOUDAGENT_BACKEND_CHAIN_TURNS": "5",
    }
    settings = config.load(found, port=0, host=None)
    assert (settings.host, settings.port) == ("::1", 0)
    assert settings.database_url == "sqlite:////x.db"
    assert settings.open_signup
    assert (settings.hop_limit, settings.chain_turns) == (0, 5)
    assert settings.secure
    assert settings.public_origin == "https://agents.example.com"
    plain = config.load({"HOME": "/home/ann"})
    assert (plain.host, plain.port, plain.open_signup) == ("127.0.0.1", 8700, False)
    assert plain.database_url.endswith("/.cloudagent/server/cloudagent.db")
    assert not plain.secure
    assert plain.public_origin is None
    moved = config.load({"CLOUDAGENT_HOME": "/srv/ca"})
    assert moved.database_url == "sqlite:////srv/ca/server/cloudagent.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "70000"),
        ("OPEN_SIGNUP", "maybe"),
        ("HOP_LIMIT", "-1"),
        ("CHAIN_TURNS", "0"),
        ("PUBLIC_URL", "agents.example.com"),
        ("PUBLIC_URL", "https://x.example/under/a/path"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=value):
        config.load({f"CLOUDAGENT_BACKEND_{name}": value})


def test_a_log_line_has_its_facts_and_no_secret() -> None:
    record = logging.makeLogRecord(
        {"name": "cloudagent_backend.api.link", "levelname": "INFO", "msg": "key sk_machine_%s"}
    )
    record.args = ("a" * 46,)
    record.action = "attach"
    line = Lines().format(record)
    assert line.endswith("INFO api.link key sk_machine_... action=attach")
    assert "secret-key" not in without_secrets("GET /?k=secret-key HTTP")
    assert "abcdefgh" not in without_secrets("token cat_abcdefgh12 crt_abcdefgh12 eyJabcdefgh.x.y")


def test_a_log_line_cannot_steer_a_terminal_or_pretend_to_be_two() -> None:
    made = {"name": "x", "levelname": "INFO", "msg": "agent %s", "host": "\x9b2J"}
    record = logging.makeLogRecord(made)
    record.args = ("\x1b]0;owned\x07\n2026-01-01T00:00:00.000Z INFO forged",)
    line = Lines().format(record)
    assert line.endswith(
        r"agent \x1b]0;owned\x07\n2026-01-01T00:00:00.000Z INFO forged host=\x9b2J"
    )
