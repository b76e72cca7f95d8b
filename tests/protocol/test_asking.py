"""What is asked, on a line."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cloudagent_protocol.asking import SHOWN, summary
from cloudagent_protocol.events import ApprovalRequested, Question
from cloudagent_protocol.ids import ApprovalId

AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tool", "given", "line"),
    [
        ("Bash", {"command": "alembic\n upgrade  head"}, "Bash “alembic upgrade head”"),
        ("Edit", {"file_path": "/src/a.py", "new_string": "x"}, "Edit “/src/a.py”"),
        ("make test", {"command": "make test"}, "make test"),
        ("deploy", {"where": "here", "command": 7}, "deploy"),
        ("Bash", {"command": "x" * 100}, f"Bash “{'x' * (SHOWN - 1)}…”"),
    ],
)
def test_a_request_on_a_line_names_the_tool_and_what_it_is_for(
    tool: str, given: dict[str, Any], line: str
) -> None:
    approval_id = ApprovalId("apr_1")
    asked = ApprovalRequested(at=AT, approval_id=approval_id, tool=tool, input=given)
    assert summary(asked) == line


def test_a_question_on_a_line_is_the_question() -> None:
    assert summary(Question(at=AT, approval_id=ApprovalId("apr_1"), question="Which\nport?")) == (
        "Which port?"
    )
