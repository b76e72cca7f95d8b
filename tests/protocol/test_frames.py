"""Frames on the wire: golden examples, tolerance for newer peers, refusal of nonsense."""

import json
from pathlib import Path

import pytest

from cloudagent_protocol import frames
from cloudagent_protocol.content import MAX_TEXT_CHARS
from cloudagent_protocol.errors import CloseCode, ProtocolError
from cloudagent_protocol.events import Finished, Reason

GOLDEN = Path(__file__).parent.parent / "golden" / "frames" / "v1"
#: `deliver.json` is a type's first example, `deliver.interrupt.json` a further one.
KINDS = sorted(path.stem for path in GOLDEN.glob("*.json"))


def test_every_frame_type_has_a_golden_example() -> None:
    assert {kind for kind in KINDS if "." not in kind} == set(frames._TYPES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_frame_is_read_and_written_as_it_was_released(kind: str) -> None:
    golden = json.loads((GOLDEN / f"{kind}.json").read_text())
    assert json.loads(frames.encode(frames.decode(json.dumps(golden)))) == golden


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_a_newer_peer_are_ignored(kind: str) -> None:
    golden = json.loads((GOLDEN / f"{kind}.json").read_text())
    frame = frames.decode(json.dumps(golden | {"from_the_future": [1]}))
    assert json.loads(frames.encode(frame)) == golden


def test_a_frame_of_an_unknown_type_is_kept_with_its_number() -> None:
    frame = frames.decode('{"type": "teleport", "seq": 7, "to": "mars"}')
    assert frame == frames.UnknownFrame(type="teleport", seq=7)


def test_a_run_event_of_an_unknown_type_is_kept_whole() -> None:
    golden = json.loads((GOLDEN / "run_report.json").read_text())
    golden["event"] = {"type": "dreamt", "seq": 2, "at": "2026-11-20T09:00:00Z", "of": ["sheep"]}
    assert json.loads(frames.encode(frames.decode(json.dumps(golden)))) == golden


def test_a_reason_of_a_newer_peer_is_kept() -> None:
    golden = json.loads((GOLDEN / "run_report.json").read_text())
    golden["event"] = {
        "type": "finished",
        "seq": 2,
        "at": "2026-11-20T09:00:00Z",
        "outcome": "failed",
        "reason": "moon_phase",
        "detail": "",
        "stderr_tail": "",
    }
    assert json.loads(frames.encode(frames.decode(json.dumps(golden)))) == golden
    golden["event"]["reason"] = "crashed"
    frame = frames.decode(json.dumps(golden))
    assert isinstance(frame, frames.RunReport)
    assert isinstance(frame.event, Finished)
    assert frame.event.reason is Reason.CRASHED


def _report(kind: str, **event: object) -> str:
    golden = json.loads((GOLDEN / "run_report.json").read_text())
    golden["event"] = {"type": kind, "at": "2026-11-20T09:00:00Z"} | event
    return json.dumps(golden)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "nonsense",
        "[]",
        "null",
        '"hello"',
        "{}",
        '{"type": 7}',
        '{"type": "ack"}',
        '{"type": "ack", "seq": -1}',
        '{"type": "ack", "seq": "many"}',
        '{"type": "hello"}',
        '{"type": "deliver", "seq": 1}',
        '{"type": "teleport", "seq": "x"}',
        '{"type": "heartbeat", "running": {}}',
        "[" * 100_000,
        '{"type": "ack", "seq": NaN}',
        _report("text", block=0, text="", seq=2**70),
        _report("text", block=0, text="", seq=-1),
        _report("started", driver="x", launch_id="l", attempt=2**70),
        b'{"type": "heartbeat"}',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_nonsense_is_refused_by_type(data: str | bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        frames.decode(data)
    assert refused.value.close_code is CloseCode.BAD_FRAME


def test_a_frame_over_the_limit_is_refused_both_ways() -> None:
    with pytest.raises(ProtocolError) as refused:
        frames.decode(" " * (frames.MAX_FRAME_BYTES + 1))
    assert refused.value.close_code is CloseCode.TOO_LARGE
    delta = json.loads((GOLDEN / "delta.json").read_text())
    frame = frames.Delta.model_validate(delta | {"text": "€" * 400_000})
    with pytest.raises(ProtocolError) as refused:
        frames.encode(frame)
    assert refused.value.close_code is CloseCode.TOO_LARGE


def test_the_longest_message_fits_into_a_frame_in_any_script() -> None:
    golden = json.loads((GOLDEN / "deliver.json").read_text())
    for letter in ("a", "€", "😀", '"', "\n", "\x01"):
        golden["message"]["text"] = letter * MAX_TEXT_CHARS
        golden["agent"]["instructions"] = letter * 20_000
        frames.encode(frames.Deliver.model_validate(golden))
