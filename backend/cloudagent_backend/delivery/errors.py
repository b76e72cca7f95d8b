"""What the verbs of delivery may refuse."""

from collections.abc import Mapping

from cloudagent_protocol.errors import ErrorCode


class Refused(Exception):  # noqa: N818  an expected answer, not a fault
    """The request cannot be done as things are; the API shows it as a problem.

    `detail` says what and why, `next` what the reader can do about it; `more` are further members of
    the problem, for programs.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        next: str | None = None,  # noqa: A002  the problem's own field name
        more: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.next = next
        self.more = dict(more or {})


def not_found() -> Refused:
    """The same for what is missing and for what is another user's."""
    return Refused(ErrorCode.NOT_FOUND, "There is no such thing here.")
