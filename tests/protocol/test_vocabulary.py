"""Ids, problems, versions and what the bodies accept."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cloudagent_protocol import ids, resources
from cloudagent_protocol.content import MessageText
from cloudagent_protocol.errors import STATUS, CloseCode, ErrorCode, ProtocolError
from cloudagent_protocol.events import RunEvent, Started, UnknownEvent
from cloudagent_protocol.version import negotiate

TEXT: TypeAdapter[str] = TypeAdapter(MessageText)


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (ids.new_user_id, "usr_"),
        (ids.new_token_id, "tok_"),
        (ids.new_host_id, "host_"),
        (ids.new_agent_id, "agent_"),
        (ids.new_request_id, "req_"),
        (ids.new_conversation_id, "conv_"),
        (ids.new_message_id, "msg_"),
        (ids.new_delivery_id, "dlv_"),
        (ids.new_run_id, "run_"),
        (ids.new_approval_id, "apr_"),
        (ids.new_attachment_id, "att_"),
        (ids.new_epoch, "ep_"),
    ],
)
def test_an_id_is_its_prefix_and_26_characters_of_crockford(make, prefix: str) -> None:
    made = make()
    assert made.startswith(prefix)
    ulid = made.removeprefix(prefix)
    assert len(ulid) == 26
    assert set(ulid) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def test_ids_made_later_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**18, 10**18 + 5_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    made = [ids.new_message_id() for _ in range(5)]
    assert made == sorted(made)


def test_every_error_code_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)


@pytest.mark.parametrize("offered", [[1], [1, 2, 99]])
def test_the_newest_common_version_is_chosen(offered: list[int]) -> None:
    assert negotiate(offered) == 1
    assert negotiate([1, 2, 3], supported=(2, 3)) == 3


@pytest.mark.parametrize("offered", [[], [2], [0]])
def test_without_a_common_version_the_answer_is_upgrade_needed(offered: list[int]) -> None:
    with pytest.raises(ProtocolError) as refused:
        negotiate(offered)
    assert refused.value.close_code is CloseCode.UPGRADE_NEEDED


@pytest.mark.parametrize("text", ["", " \n\t", "a\x00b", "\x00"])
def test_an_empty_message_or_one_with_nul_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TEXT.validate_python(text)


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text))
def test_any_other_text_is_kept_to_the_letter(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert TEXT.validate_python(text) == text


def test_an_unknown_field_of_a_body_is_an_error_not_a_shrug() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        resources.AgentMessageCreate.model_validate({"text": "hi", "txet": "ho"})


def test_run_events_are_told_apart_by_type_as_data_and_as_objects() -> None:
    adapter: TypeAdapter[RunEvent] = TypeAdapter(RunEvent)
    raw = {"type": "started", "at": "2026-11-20T09:00:00Z", "driver": "x", "launch_id": "l"}
    started = adapter.validate_python(raw)
    assert isinstance(started, Started)
    assert adapter.validate_python(started) is started
    assert isinstance(adapter.validate_python(raw | {"type": "novel"}), UnknownEvent)
    with pytest.raises(ValidationError):
        adapter.validate_python("started")


def test_the_random_parts_of_many_threads_and_of_a_forked_child_are_all_different() -> None:
    script = """
import os, threading
from cloudagent_protocol.ids import new_message_id
made = [new_message_id()]
threads = [threading.Thread(target=lambda: made.extend(new_message_id() for _ in range(500)))
           for _ in range(4)]
[one.start() for one in threads], [one.join() for one in threads]
child = os.fork()
if child:
    os.waitpid(child, 0)
print("\\n".join([*made, *(new_message_id() for _ in range(50))] if child else
      [new_message_id() for _ in range(50)]), flush=True)
os._exit(0)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    randoms = [one[-16:] for one in printed.stdout.split()]
    assert len(randoms) == len(set(randoms)) == 2_101
