"""What is sent of a diff: bounded, in whole lines, and without keys."""

import json
from typing import Any

import pytest

from cloudagent_daemon.runs.diffs import MAX_LINE_CHARS, MAX_PATCH_BYTES, diff_of
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_protocol.diffs import MAX_DIFF_BYTES, Diff

HEAD = "diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n@@ -1 +1,9 @@\n"


def said(*patches: str) -> dict[str, Any]:
    files = [
        {"path": f"f{number}", "status": "modified", "patch": patch, "additions": 1}
        for number, patch in enumerate(patches)
    ]
    return {"files": files, "additions": len(files)}


def cut(*patches: str) -> Diff:
    return diff_of(said(*patches), "/repo", Redaction({"THE_TOKEN": "correct horse"}).clean)


def test_a_small_diff_stays_as_it_is() -> None:
    diff = cut(f"{HEAD}-a\n+b\n")
    assert (diff.files[0].patch, diff.files[0].truncated) == (f"{HEAD}-a\n+b\n", False)
    assert (diff.root, diff.redacted, diff.count.files, diff.count.additions) == (
        "/repo", False, 1, 1,
    )  # fmt: skip


def test_keys_are_taken_out_before_anything_is_cut() -> None:
    key = "sk-ant-" + "k" * 200
    filler = "x" * (MAX_LINE_CHARS - 20) + " "
    diff = cut(f"{HEAD}+{filler}{key}\n+it is correct horse\n")
    assert diff.redacted
    assert "kkk" not in diff.files[0].patch
    assert "correct horse" not in diff.files[0].patch


def test_a_long_line_is_cut_and_said() -> None:
    diff = cut(f"{HEAD}+{'x' * 5_000}\n+y\n")
    lines = diff.files[0].patch.splitlines()
    assert len(lines[5]) == MAX_LINE_CHARS + 1
    assert lines[6] == "+y"
    assert diff.files[0].truncated


def test_one_file_does_not_take_the_room_of_the_others() -> None:
    diff = cut(HEAD + "+much\n" * 100_000, f"{HEAD}+b\n")
    assert len(json.dumps(diff.files[0].patch)) - 2 <= MAX_PATCH_BYTES
    assert diff.files[0].patch.endswith("+much\n")
    assert diff.files[0].truncated
    assert diff.files[1].patch.endswith("+b\n")


def test_all_together_stay_below_the_limit_as_they_are_sent() -> None:
    diff = cut(*[HEAD + '+"\\\t\u0001\n' * 10_000] * 20)
    assert len(diff.model_dump_json()) <= MAX_DIFF_BYTES + 20 * 300
    assert [bool(file.patch) for file in diff.files] == [True] * 4 + [False] * 16
    assert all(file.truncated for file in diff.files)
    assert diff.count.files == 20


def test_a_patch_of_which_nothing_but_its_head_fits_is_left_out() -> None:
    diff = cut(*[HEAD + "+much\n" * 100_000] * 4, HEAD + "+" + "x" * 900 + "\n")
    assert diff.files[4].patch == ""
    assert diff.files[4].truncated


def test_a_rename_has_a_head_only() -> None:
    patch = "diff --git a/a b/b\nsimilarity index 100%\nrename from a\nrename to b\n"
    assert cut(patch).files[0].patch == patch


def test_what_is_no_diff_is_refused() -> None:
    with pytest.raises(ValueError, match="not a diff"):
        diff_of({"files": [{"patch": 1}]}, "/repo", str)
