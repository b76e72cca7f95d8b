"""How much of everything there is, for the operator's graphs."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    users: int
    hosts: int
    agents: int
    live_runs: int
    #: Unfinished deliveries by state.
    deliveries: dict[str, int]


def take(c: sqlite3.Connection) -> Counts:
    row = c.execute(
        "SELECT (SELECT count(*) FROM users),"
        " (SELECT count(*) FROM host_machines WHERE deleted_us IS NULL),"
        " (SELECT count(*) FROM agents WHERE deleted_us IS NULL),"
        " (SELECT count(*) FROM runs WHERE state <> 'finished')"
    ).fetchone()
    # Two queries, each over an index of its own: finished deliveries are never looked at.
    states = c.execute(
        "SELECT state, count(*) FROM deliveries WHERE state = 'queued' GROUP BY state UNION ALL"
        " SELECT state, count(*) FROM deliveries"
        " WHERE in_flight = 1 GROUP BY state"
    )
    return Counts(row[0], row[1], row[2], row[3], dict(tuple(one) for one in states))
