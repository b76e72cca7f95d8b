"""How much a run changed, from what it changed."""

from cloudagent_protocol.diffs import ChangeCount, Diff, FileDiff


def test_a_diff_counts_the_files_that_it_shows_and_those_that_it_does_not() -> None:
    files = [FileDiff(path=name, status="modified") for name in ("a", "b")]
    diff = Diff(files=files, more=3, additions=7, deletions=1)
    assert diff.count == ChangeCount(files=5, additions=7, deletions=1)
    assert Diff(problem="git is missing").count == ChangeCount(problem="git is missing")
