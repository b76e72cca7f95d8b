"""The real coding agents from npm do what every driver has to do; only their model is scripted.

Each takes seconds of CPU per start, so that a round goes through the behaviours by `contracts/journeys.py`, several
in each start. With `REAL_CLIS="claude codex opencode gemini qwen"`, or some of these, each is run by itself.
"""

import os
from pathlib import Path

import pytest

from contracts.drivers import BEHAVIOURS
from contracts.journeys import JOURNEYS
from contracts.kits import Kit
from contracts.matrix import instead
from e2e.real_kits import REAL, SINGLY

pytestmark = [pytest.mark.slow, pytest.mark.real_cli, pytest.mark.timeout(400)]

#: One behaviour at a time, of these programs.
ALONE = os.environ.get("REAL_CLIS", "").split()


def singly(name: str) -> list[str]:
    """The behaviours of a program that are run by themselves."""
    if name not in ALONE:
        return list(SINGLY.get(name, ()))
    return [words for words in BEHAVIOURS if instead(REAL[name], words) != "asks for none"]


@pytest.mark.parametrize("journey", JOURNEYS)
@pytest.mark.parametrize("name", [name for name in REAL if not ALONE])
async def test_the_real_program_on_a_journey(name: str, journey: str, tmp_path: Path) -> None:
    await JOURNEYS[journey](REAL[name], tmp_path)


@pytest.mark.parametrize(
    ("kit", "words"),
    [
        pytest.param(REAL[name], words, id=f"{name}-{words}")
        for name in (ALONE or REAL)
        for words in singly(name)
    ],
)
async def test_the_real_program(kit: Kit, words: str, tmp_path: Path) -> None:
    await BEHAVIOURS[words](kit, tmp_path)
