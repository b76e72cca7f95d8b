"""What of a long history the model sees."""

from pathlib import Path

from cloudagent_daemon.agent.context import fit, tokens
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Entry,
    Picture,
    Result,
    Results,
    User,
    clip,
)


def turn(name: str, size: int = 100) -> list[Entry]:
    return [User(f"{name} {'x' * size}"), Assistant(f"answer to {name}")]


def total(entries: list[Entry]) -> int:
    return sum(map(tokens, entries))


def test_what_fits_is_left_alone() -> None:
    history = [*turn("one"), *turn("two")]
    assert fit(history, 1_000) == history


def test_the_oldest_turns_go_first_and_the_model_is_told() -> None:
    history = [*turn("one"), *turn("two"), *turn("three"), User("now")]
    kept = fit(history, total(history[2:]))
    assert kept[1:] == history[3:]
    first = kept[0]
    assert isinstance(first, User)
    assert first.text.startswith("[1 earlier turns")
    assert "two" in first.text


def test_the_present_turn_stays_with_its_old_results_shortened() -> None:
    present: list[Entry] = [User("now")]
    for number in range(4):
        present.append(Assistant("", (Call(f"c{number}", "read_file"),)))
        present.append(Results((Result(f"c{number}", "y" * 10_000),)))
    kept = fit([*turn("old"), *present], 100)
    results = [entry.results[0] for entry in kept if isinstance(entry, Results)]
    assert [len(result.output) < 2_000 for result in results] == [True, True, False, False]
    assert results[0].truncated
    assert [type(entry) for entry in kept] == [type(entry) for entry in present]


def test_a_picture_takes_room_and_stays_with_its_turn() -> None:
    shown = User("two", (Picture(Path("a.png"), "image/png", "QQ=="),))
    history = [*turn("one"), shown, Assistant("I see"), User("now")]
    assert fit(history, 1_500)[0] == User("[2 earlier turns of this conversation left out]\n\nnow")
    first = fit(history, 1_620)[0]
    assert isinstance(first, User)
    assert first.pictures == shown.pictures


def test_a_long_text_keeps_its_start_and_its_end() -> None:
    assert clip("short") == ("short", False)
    text, cut = clip("a" * 20 + "b" * 100 + "c" * 20, keep=20)
    assert cut
    assert text == f"{'a' * 20}\n[… 100 characters left out …]\n{'c' * 20}"
