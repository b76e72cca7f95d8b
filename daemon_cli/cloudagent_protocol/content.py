"""What a message holds besides its text."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: Characters in one message. A frame of it stays below the wire's 1 MiB in any encoding.
MAX_TEXT_CHARS: Final = 200_000

MessageText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS, pattern=r"^[^\x00]*\S[^\x00]*$")
]


class Attachment(BaseModel):
    """A file that goes with a message; its bytes are fetched from `/v1/attachments/{id}`."""

    model_config = ConfigDict(extra="ignore")

    id: str
    name: str
    media_type: str
    size_bytes: int = Field(ge=0)
