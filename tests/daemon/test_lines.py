"""Whatever a CLI prints becomes lines, and JSON where it is JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.drivers.lines import MAX_DEPTH, LineSplitter, clip, parse_object


@given(st.lists(st.binary(max_size=30)), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"\n".join(pieces)
    whole, cut = LineSplitter(), LineSplitter()
    expected = whole.feed(data) + whole.flush()
    lines = [line for at in range(0, len(data), step) for line in cut.feed(data[at : at + step])]
    assert lines + cut.flush() == expected
    assert expected == [piece.removesuffix(b"\r") for piece in data.split(b"\n")[:-1]] + [
        piece for piece in [data.split(b"\n")[-1].removesuffix(b"\r")] if piece
    ]


def test_a_line_that_is_too_long_is_skipped_and_counted() -> None:
    lines = LineSplitter(max_bytes=10)
    assert lines.feed(b"short\n" + b"x" * 8) == [b"short"]
    assert lines.feed(b"y" * 100) == []
    assert lines.feed(b"zz\nnext\n") == [b"next"]
    assert lines.skipped == 1


def test_an_unfinished_long_line_is_skipped_too() -> None:
    lines = LineSplitter(max_bytes=10)
    lines.feed(b"x" * 11)
    assert lines.flush() == []
    assert lines.skipped == 1


def test_only_objects_are_objects() -> None:
    assert parse_object(b'{"a": 1}') == {"a": 1}
    for line in (b"", b"[1]", b"text", b"1", b"null", b"{", b"\xff", b"[" * 100_000):
        assert parse_object(line) is None


@given(st.text(), st.binary(max_size=20))
def test_what_is_parsed_can_be_encoded(text: str, noise: bytes) -> None:
    for line in (json.dumps({text: [text]}).encode(), b'{"a": "' + noise + b'"}'):
        if (value := parse_object(line)) is not None:
            json.dumps(value, ensure_ascii=False).encode()


def test_lone_surrogates_become_replacement_characters() -> None:
    assert parse_object(rb'{"a": ["\ud800x", "\ud834\udd1e"]}') == {"a": ["\ufffdx", "𝄞"]}


def test_nul_becomes_a_replacement_character_too() -> None:
    assert parse_object(rb'{"a\u0000": "b\u0000c"}') == {"a\ufffd": "b\ufffdc"}


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 300, 900])
@pytest.mark.parametrize("piece", [('{"a":', "}"), ("[", "]")])
def test_what_is_nested_too_deeply_for_others_is_cut(levels: int, piece: tuple[str, str]) -> None:
    begin, end = piece
    value: Any = parse_object(f'{{"x":{begin * levels}1{end * levels}}}'.encode())
    value = value["x"]
    depth = 0
    while not isinstance(value, str):
        value, depth = (value["a"] if isinstance(value, dict) else value[0]), depth + 1
    assert depth == MAX_DEPTH - 1
    assert "too deeply" in value


def test_a_long_text_keeps_its_two_ends() -> None:
    short, cut = clip("x" * 20, keep=10)
    assert (len(short), cut) == (20, False)
    long, cut = clip("a" * 15 + "b" * 15, keep=10)
    assert cut
    assert long.startswith("a" * 10 + "\n")
    assert long.endswith("\n" + "b" * 10)
    assert "10 characters left out" in long
