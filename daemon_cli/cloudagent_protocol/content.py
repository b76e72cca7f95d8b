"""What a message holds besides its text."""

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from cloudagent_protocol.ids import AttachmentId

#: Characters in one message. JSON may need six bytes for one, and a frame has 1 MiB.
MAX_TEXT_CHARS: Final = 100_000

MessageText = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=MAX_TEXT_CHARS, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$"
    ),
]


#: As `MessageText`, or nothing: where files may speak for themselves.
MaybeText = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS, pattern=r"^[^\x00]*$")]


class Attachment(BaseModel):
    """A file that goes with a message; its bytes are fetched from `/v1/attachments/{id}`."""

    model_config = ConfigDict(extra="ignore")

    id: AttachmentId
    #: As `attachments.file_name` makes it.
    name: str
    #: By its first bytes, never by what somebody says: `attachments.media_type_of`.
    media_type: str
    size_bytes: int = Field(ge=0)
    #: Of the bytes, in hexadecimal digits.
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    #: When its owner removed it from the backend; its bytes are had from nowhere then.
    removed_at: AwareDatetime | None = None
