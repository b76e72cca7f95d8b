"""What runs changed in the repositories that they worked in."""

import sqlite3
from typing import Final

from cloudagent_protocol.diffs import ChangeCount, Diff
from cloudagent_protocol.ids import RunId, UserId

#: Of each person; of older runs only the numbers stay. 300 MB at most, a hundredth of that as a rule.
KEPT: Final = 1_000


def add(c: sqlite3.Connection, user_id: UserId, run_id: RunId, diff: Diff) -> bool:
    """Keep it; false if there is one of this run already. The oldest ones of the person go."""
    count = diff.count.model_dump_json(exclude_none=True)
    sql = "UPDATE runs SET changes = ? WHERE id = ? AND changes IS NULL"
    if c.execute(sql, (count, run_id)).rowcount == 0:
        return False
    c.execute(
        "INSERT INTO run_diffs (run_id, user_id, body) VALUES (?, ?, ?)",
        (run_id, user_id, diff.model_dump_json(exclude_none=True)),
    )
    c.execute(
        "DELETE FROM run_diffs WHERE user_id = ? AND run_id <= (SELECT run_id FROM run_diffs"
        " WHERE user_id = ? ORDER BY run_id DESC LIMIT 1 OFFSET ?)",
        (user_id, user_id, KEPT),
    )
    return True


def load(c: sqlite3.Connection, run_id: RunId) -> Diff | None:
    """The diff; null if none was told, and without its files if it is no longer kept."""
    row = c.execute(
        "SELECT runs.changes, run_diffs.body FROM runs LEFT JOIN run_diffs ON run_id = id"
        " WHERE id = ?",
        (run_id,),
    ).fetchone()
    if row is None or row[0] is None:
        return None
    if row[1] is not None:
        return Diff.model_validate_json(row[1])
    count = ChangeCount.model_validate_json(row[0])
    gone = f"This diff is no longer kept: only those of your newest {KEPT:,} runs are."
    return Diff(
        more=count.files, additions=count.additions, deletions=count.deletions, problem=gone
    )
