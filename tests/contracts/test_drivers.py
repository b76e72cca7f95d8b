"""Every driver does what a driver has to do: each behaviour, with a program whose far end is scripted."""

import os
from pathlib import Path

import pytest

from contracts.drivers import BEHAVIOURS
from contracts.journeys import SHOWS
from contracts.kits import BUILTIN, BUILTIN_ACP, FAKE_ACP, FAKE_CLAUDE, FAKE_CODEX, Kit
from contracts.matrix import instead, matrix
from e2e.real_kits import REAL, SINGLY

KITS = (FAKE_CLAUDE, FAKE_CODEX, FAKE_ACP, BUILTIN, BUILTIN_ACP)
PAGE = Path(__file__).parents[2] / "docs" / "drivers.md"


#: The driver and the program of this one are each looked at whole elsewhere; here, that they fit.
TOGETHER = (
    "a reply by our tool",
    "a session resumed",
    "a stop, with all that it started gone",
)
#: What a driver cannot and does instead is what it does of every message, but for these.
ALWAYS = ("the first message in a process that waits for it",)


def looked_at(kit: Kit, words: str) -> bool:
    if words in TOGETHER:
        return True
    return kit is not BUILTIN_ACP and (words in ALWAYS or instead(kit, words) is None)


LOOKED_AT = [
    pytest.param(kit, words, id=f"{kit.name}-{words}")
    for kit in KITS
    for words in BEHAVIOURS
    if looked_at(kit, words)
    or ("CONTRACT" in os.environ and instead(kit, words) != "asks for none")
]


@pytest.mark.parametrize(("kit", "words"), LOOKED_AT)
async def test_each_driver(kit: Kit, words: str, tmp_path: Path) -> None:
    await BEHAVIOURS[words](kit, tmp_path)


def test_the_page_has_the_matrix_of_what_is_run() -> None:
    page = PAGE.read_text()
    for mark, table in (("matrix", matrix(KITS)), ("real", matrix(list(REAL.values())))):
        before, _, rest = page.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        page = f"{before}<!-- {mark} -->\n{table}<!-- /{mark} -->{after}"
    if os.environ.get("MATRIX") == "write":
        PAGE.write_text(page)
    assert PAGE.read_text() == page, (
        "write it anew: MATRIX=write pytest tests/contracts/test_drivers.py"
    )


def test_each_real_program_is_run_through_every_behaviour_that_it_can_have() -> None:
    journeys = {words for shown in SHOWS.values() for words in shown}
    for name, kit in REAL.items():
        wanted = {words for words in BEHAVIOURS if instead(kit, words) is None}
        assert wanted <= journeys | set(SINGLY.get(name, ())), name
