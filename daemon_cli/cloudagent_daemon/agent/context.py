"""Chooses what of a long history the model gets to see. Pure.

Deliberately simple: nothing is summarised. Whole old turns go first, then the middles of old tool
results; the model is told what is missing, and the session on disk keeps everything.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cloudagent_daemon.agent.history import (
    Assistant,
    Entry,
    Result,
    Results,
    User,
    clip,
    seen,
)

#: A rough mean over prose and code; the service's own count decides, and may answer
#: `context_overflow`, whereupon the loop tries once with half the budget.
CHARS_PER_TOKEN: Final = 3.5
#: A picture of the size that a service scales large ones down to.
PICTURE_TOKENS: Final = 1_600
#: Characters that an old tool result keeps of each end when the present turn alone is too long.
OLD_RESULT_CHARS: Final = 500
#: The newest results stay whole: the model is working with them.
WHOLE_RESULTS: Final = 2


def fit(history: Sequence[Entry], budget_tokens: int) -> list[Entry]:
    """The newest turns that fit, never less than the present one, which begins at the last `User`."""
    turns = _turns(history)
    dropped = 0
    while len(turns) - dropped > 1 and _tokens(turns[dropped:]) > budget_tokens:
        dropped += 1
    kept = [entry for turn in turns[dropped:] for entry in turn]
    if _tokens([kept]) > budget_tokens:
        kept = _with_short_results(kept)
    if dropped and isinstance(first := kept[0], User):
        note = f"[{dropped} earlier turns of this conversation left out]"
        kept[0] = replace(first, text=f"{note}\n\n{first.text}")
    return kept


def tokens(entry: Entry) -> int:
    """About how many tokens an entry takes."""
    match entry:
        case User():
            pictures = len(seen(entry)) * PICTURE_TOKENS
            return int(len(entry.text) / CHARS_PER_TOKEN) + pictures + 1
        case Assistant():
            size = len(entry.text) + sum(len(str(call.input)) + 50 for call in entry.calls)
        case Results():
            size = sum(len(result.output) + 50 for result in entry.results)
    return int(size / CHARS_PER_TOKEN) + 1


def _tokens(turns: Sequence[Sequence[Entry]]) -> int:
    return sum(tokens(entry) for turn in turns for entry in turn)


def _turns(history: Sequence[Entry]) -> list[list[Entry]]:
    turns: list[list[Entry]] = []
    for entry in history:
        if isinstance(entry, User) or not turns:
            turns.append([])
        turns[-1].append(entry)
    return turns


def _with_short_results(entries: Sequence[Entry]) -> list[Entry]:
    places = [index for index, entry in enumerate(entries) if isinstance(entry, Results)]
    old = frozenset(places[:-WHOLE_RESULTS])
    return [
        Results(tuple(map(_short, entry.results)))
        if index in old and isinstance(entry, Results)
        else entry
        for index, entry in enumerate(entries)
    ]


def _short(result: Result) -> Result:
    output, cut = clip(result.output, OLD_RESULT_CHARS)
    return replace(result, output=output, truncated=result.truncated or cut)
