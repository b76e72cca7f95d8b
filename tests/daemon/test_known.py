"""Versions that are known to be bad are told of, with where that is known from and what to do."""

import pytest

from cloudagent_daemon.drivers.known import KNOWN, warning


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.driver} {known.source}")
def test_each_is_told_with_its_source_and_its_repair(known: object) -> None:
    [one] = [one for one in KNOWN if one is known]
    for numbers in (one.first, one.last):
        said = warning(one.driver, f"codex-cli {'.'.join(map(str, numbers))} (x)")
        assert said is not None
        assert one.source in said
        assert one.repair in said
    assert one.first <= one.last
    assert warning("qwen", ".".join(map(str, one.first))) is None


@pytest.mark.parametrize("version", [None, "", "2.1", "2.1.221", "2.1.220", "0.149.0", "nightly"])
def test_others_are_not(version: str | None) -> None:
    assert warning("codex", version) is None
    assert warning("claude_code", version) is None
