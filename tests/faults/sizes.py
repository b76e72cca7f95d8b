"""How much the rows of the fault matrix do: set by the environment, small by default."""

import os
from typing import Final

import pytest

#: Messages of each row, and agents, each with a conversation.
MESSAGES: Final = int(os.environ.get("FAULTS_MESSAGES", "12"))
AGENTS: Final = int(os.environ.get("FAULTS_AGENTS", "3"))
#: How often each row is run, with another seed each.
SEEDS: Final = range(int(os.environ.get("FAULTS_SEEDS", "1")))
#: Whether time may be spent on waiting as long as the row says.
FULL: Final = os.environ.get("FAULTS_ROWS") == "all"
#: Crashes of the daemon in a row's test, and cuts of the network or of the backend. Few of the latter:
#: after each within a minute the daemon waits longer before it connects again.
ROUNDS: Final = max(1, MESSAGES // 25)
CUTS: Final = min(4, ROUNDS + 1)
DEADLINE_S: Final = 60.0 + MESSAGES
#: A quiet link counts as dead after so long; the quick selection has less time.
SILENCE_S: Final = 25 if FULL else 6
#: For processes to start and lines to be read on a busy machine.
SLACK_S: Final = 2.0

#: For each module of rows.
MARKS: Final = [pytest.mark.slow, pytest.mark.timeout(DEADLINE_S * 3)]
seeded: Final = pytest.mark.parametrize("seed", SEEDS)
