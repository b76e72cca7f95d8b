"""Every driver does what a driver has to do: each behaviour, with a program whose far end is scripted."""

import os
from pathlib import Path

import pytest

from contracts.drivers import (
    BEHAVIOURS,
    BUILTIN,
    BUILTIN_ACP,
    FAKE_ACP,
    FAKE_CLAUDE,
    FAKE_CODEX,
    Kit,
    matrix,
)

KITS = (FAKE_CLAUDE, FAKE_CODEX, FAKE_ACP, BUILTIN, BUILTIN_ACP)
PAGE = Path(__file__).parents[2] / "docs" / "drivers.md"
MARKS = ("<!-- matrix -->\n", "<!-- /matrix -->")


#: The driver and the program of this one are each looked at whole elsewhere; here, that they fit.
TOGETHER = (
    "a reply by our tool",
    "a session resumed",
    "a stop, with all that it started gone",
)


def _can(kit: Kit, words: str) -> bool:
    """Whether the driver does it in its own way; what it does instead is what it does of every message."""
    if words in {"the next message in the same process", "a stop that its process survives"}:
        return kit.warm
    if words == "a picture that its model sees":
        return kit.sees
    return words != "a message put into its turn" or kit.steers


LOOKED_AT = [
    pytest.param(kit, words, id=f"{kit.name}-{words}")
    for kit in KITS
    for words in BEHAVIOURS
    if "CONTRACT" in os.environ
    or words in TOGETHER
    or (kit is not BUILTIN_ACP and _can(kit, words))
]


@pytest.mark.parametrize(("kit", "words"), LOOKED_AT)
async def test_each_driver(kit: Kit, words: str, tmp_path: Path) -> None:
    await BEHAVIOURS[words](kit, tmp_path)


def test_the_page_has_the_matrix_of_what_is_run() -> None:
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page = f"{before}{MARKS[0]}{matrix(KITS)}{MARKS[1]}{after}"
    if os.environ.get("MATRIX") == "write":
        PAGE.write_text(page)
    assert PAGE.read_text() == page, (
        "write it anew: MATRIX=write pytest tests/contracts/test_drivers.py"
    )
