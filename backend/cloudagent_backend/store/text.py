"""JSON text, as columns hold it: compact, UTF-8, no field of a model left out."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json


def json_text(value: BaseModel | dict[str, Any] | list[Any]) -> str:
    """Several times as fast as the standard library's, which counts at every step of a message.

    Raises:
        ValueError: it holds what JSON in UTF-8 cannot (half of a surrogate pair).
    """
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return to_json(value).decode()
