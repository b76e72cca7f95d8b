"""Reading the log files: what a line says, which were the last, and what comes after them."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon import logfiles
from cloudagent_daemon.logfiles import MAX_LINE_BYTES, Tail, Wanted, last, parse


def line(n: int, level: str = "INFO", extra: str = "") -> str:
    return f"2026-11-20T21:{n // 60:02}:{n % 60:02}.000Z {level} link.client line {n}{extra}"


def write(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{one}\n" for one in lines)


def messages(folder: Path, count: int = 50, **wanted: str) -> list[str]:
    return [entry.message for entry in last(folder, count, Wanted(**wanted))]


# --- a line -------------------------------------------------------------------------------


def test_a_line_is_its_time_level_logger_message_and_fields() -> None:
    raw = "2026-11-20T21:00:00.123Z WARNING link.client a = b (attempt 2) action=x agent_id=agent_1"
    [entry] = parse([raw])
    assert entry.json() == {
        "schema": "cloudagent.log/1",
        "at": "2026-11-20T21:00:00.123Z",
        "level": "WARNING",
        "logger": "link.client",
        "message": "a = b (attempt 2)",
        "fields": {"action": "x", "agent_id": "agent_1"},
        "more": [],
    }


def test_the_lines_of_a_traceback_belong_to_their_entry() -> None:
    entries = list(parse(["lost", line(1), "Traceback:", "  boom", line(2)]))
    assert [entry.lines for entry in entries] == [
        ["lost"],
        [line(1), "Traceback:", "  boom"],
        [line(2)],
    ]
    assert entries[0].message == "lost"
    assert entries[1].json()["more"] == ["Traceback:", "  boom"]


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    lines = text.split("\n")
    assert [one for entry in parse(lines) for one in entry.lines] == lines


# --- the last ones ------------------------------------------------------------------------


def test_the_last_lines_come_from_as_many_files_as_it_takes_in_their_order(tmp_path: Path) -> None:
    names = ["11-19", "11-20", "11-20.1", "11-20.2", "11-20.10"]
    for n, name in enumerate(names):
        write(tmp_path / f"daemon-2026-{name}.log", line(2 * n), line(2 * n + 1))
    write(tmp_path / "daemon-of-somebody.log", line(99))
    assert messages(tmp_path) == [f"line {n}" for n in range(10)]
    assert messages(tmp_path, 3) == ["line 7", "line 8", "line 9"]
    assert messages(tmp_path, 0) == []


def test_only_what_is_wanted_counts(tmp_path: Path) -> None:
    file = tmp_path / "daemon-2026-11-20.log"
    write(file, line(1, "DEBUG"), line(2, "ERROR", " agent_id=agent_1"), "Traceback:")
    write(file, line(3), line(4, "WARNING", " agent_id=agent_12"))
    assert messages(tmp_path, 2, level="WARNING") == ["line 2", "line 4"]
    assert messages(tmp_path, agent_id="agent_1") == ["line 2"]
    assert messages(tmp_path, since="2026-11-20T21:00:03.000Z") == ["line 3", "line 4"]


def test_what_is_written_after_a_tail_began_is_the_tails(tmp_path: Path) -> None:
    file = tmp_path / "daemon-2026-11-20.log"
    write(file, line(1))
    tail = Tail(tmp_path)
    write(file, line(2))
    write(tmp_path / "daemon-2026-11-21.log", line(3))
    assert [entry.message for entry in last(tmp_path, 9, Wanted(), tail)] == ["line 1"]
    assert list(islice(tail.lines(), 2)) == [line(2), line(3)]


def test_a_very_long_line_is_cut_and_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "daemon-2026-11-20.log"
    file.write_bytes(b"\xff\n" + b"x" * (MAX_LINE_BYTES + 10) + b"\n")
    [entry] = last(tmp_path, 5, Wanted())
    assert entry.lines[0] == "\ufffd"
    assert len(entry.lines[1]) == MAX_LINE_BYTES + 1


# --- what comes after ---------------------------------------------------------------------


class Script:
    """What happens to the files while a tail pauses; ends the following when it is through."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = iter(steps)

    def __call__(self, seconds: float) -> None:
        assert seconds == logfiles.POLL_S
        step = next(self._steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()


def followed(folder: Path, *steps: Callable[[], object]) -> list[str]:
    found: list[str] = []
    with suppress(KeyboardInterrupt):
        for one in Tail(folder, Script(*steps)).lines():
            found += [one]
    return found


def test_a_tail_goes_on_through_rotation_deletion_and_a_new_file_of_the_same_name(
    tmp_path: Path,
) -> None:
    first, part = tmp_path / "daemon-2026-11-20.log", tmp_path / "daemon-2026-11-20.1.log"
    tomorrow = tmp_path / "daemon-2026-11-21.log"
    write(first, "before")

    def rotate() -> None:
        write(first, "two")
        write(part, "three")

    def delete_and_begin_anew() -> None:
        part.unlink()
        write(part, "four")

    found = followed(
        tmp_path,
        lambda: write(first, "one"),
        rotate,
        delete_and_begin_anew,
        lambda: part.write_text("5\n", "utf-8"),
        lambda: part.unlink(),
        lambda: write(tomorrow, "six"),
    )
    assert found == ["one", "two", "three", "four", "5", "six"]


def test_a_tail_waits_for_the_first_file_and_for_a_lines_end(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "daemon-2026-11-20.log"

    def begin() -> None:
        file.parent.mkdir()
        file.write_text("half", "utf-8")

    found = followed(file.parent, begin, lambda: write(file, " a line", "next"))
    assert found == ["half a line", "next"]


def test_what_has_no_end_when_its_file_is_left_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "daemon-2026-11-20.log"
    file.touch()

    def broken_off() -> None:
        file.write_text("cut off", "utf-8")
        write(tmp_path / "daemon-2026-11-21.log", "new")

    assert followed(tmp_path, broken_off) == ["cut off", "new"]


@given(st.lists(st.sampled_from(["write", "write", "rotate", "day", "anew"]), max_size=30))
def test_each_line_is_followed_once_in_its_order(steps: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, day, part, count = Path(name), 1, 0, 0
        written: list[str] = []

        def path() -> Path:
            return folder / f"daemon-2026-11-{day:02}{f'.{part}' if part else ''}.log"

        def step(kind: str) -> None:
            nonlocal day, part, count
            match kind:
                case "rotate":
                    part += 1
                case "day":
                    day, part = day + 1, 0
                case "anew":
                    path().unlink(missing_ok=True)
                case _:
                    pass
            count += 1
            written.append(f"line {count}")
            write(path(), written[-1])

        path().touch()
        assert followed(folder, *[lambda kind=kind: step(kind) for kind in steps]) == written
