"""What a process says is reported without keys, however its output is cut into pieces."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.runs.redaction import HELD_CHARS, Redaction
from fakes.runs import a_world

KEYS = {
    "sk-ant-api03-" + "a" * 40: "sk-ant-…",
    "sk-proj-" + "b" * 40: "sk-proj-…",
    "sk_machine_" + "c" * 46: "sk_machine_…",
    "cat_" + "d" * 40: "cat_…",
    "ghp_" + "e" * 36: "ghp_…",
    "github_pat_" + "f" * 40: "github_pat_…",
    "AKIA" + "G" * 16: "AKIA…",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl": "eyJ…",
    "Authorization: Bearer abcdefgh12345678": "Authorization: Bearer …",
    "{'x-api-key': '0123456789abcdef'}": "{'x-api-key': '…'}",
    "https://ana:hunter22@registry.example/": "https://ana:…@registry.example/",
}
PLAIN = (
    "Error: ENOENT: no such file, open '/home/ana/keys/token.txt'\n"
    "bearer of bad news; sk-8; https://example.com:8080/x@y; the task-list of risk-averse people"
)


@pytest.mark.parametrize(("said", "told"), KEYS.items())
def test_what_has_the_form_of_a_key_is_not_told(said: str, told: str) -> None:
    assert Redaction({}).clean(f"failed with {said}\n") == f"failed with {told}\n"


def test_what_has_not_is_told_to_the_letter() -> None:
    assert Redaction({"PATH": "/usr/bin:/bin", "HOME": "/home/ana"}).clean(PLAIN) == PLAIN


def test_the_values_of_secret_variables_are_not_told_whatever_their_form() -> None:
    redaction = Redaction(
        {"DB_PASSWORD": "correct horse", "API_TOKEN": "short", "NAME": "frontend"}
    )
    said = "login with correct horse failed for frontend, short of time"
    assert redaction.clean(said) == "login with … failed for frontend, short of time"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from(list(KEYS)))
def test_no_cut_of_the_output_shows_a_key(sizes: list[int], key: str) -> None:
    redaction, text = Redaction({}), f"first line\nfailed with {key} at last\nthe end"
    told, at = "", 0
    for size in sizes:
        told += redaction.feed(text[at : at + size])
        at += size
    told += redaction.feed(text[at:]) + redaction.flush()
    assert told == Redaction({}).clean(text)
    assert redaction.flush() == ""


def test_of_a_line_without_an_end_only_a_rest_is_held_back() -> None:
    redaction = Redaction({})
    told = redaction.feed("x" * 3 * HELD_CHARS)
    assert len(told) == 2 * HELD_CHARS
    assert len(told + redaction.flush()) == 3 * HELD_CHARS


async def test_a_run_reports_its_stderr_without_keys(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(f"@@stderr using sk-ant-api03-{'a' * 40}\n@@mute\n@@crash 3")
    said = [event.text for event in seen.events if event.type == "stderr"]
    assert "using sk-ant-…" in "".join(said)
    assert "using sk-ant-…" in seen.end.stderr_tail
    assert "aaaa" not in seen.end.stderr_tail + "".join(said)
