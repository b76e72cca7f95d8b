"""`agent rules`: what people have allowed agents of this machine for longer, and its removal."""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloudagent_daemon.cli.options import USAGE, CommandError, Here, safe
from cloudagent_daemon.paths import spool_file

if TYPE_CHECKING:
    import sqlite3

SCHEMA: Final = "cloudagent.rules/1"


def run(arguments: argparse.Namespace) -> int:
    from cloudagent_daemon.cli.agent import known_agents

    here = Here(arguments)
    if arguments.remove:
        _remove(here, arguments.remove)
        return 0
    names = known_agents(here)
    rules = [
        rule | {"agent": names.get(rule["agent_id"], rule["agent_id"])}
        for rule in found_in(_file(here))
        if arguments.agent_id in (None, rule["agent_id"])
    ]
    if arguments.json:
        print(json.dumps({"schema": SCHEMA, "profile": here.profile, "rules": rules}))
    elif rules:
        print(safe("\n".join(map(_line, rules))))
        print(f"\nremove one: {here.command('agent rules --remove RULE')}")
    else:
        print("agents ask for everything that their mode does not allow; there are no rules")
    return 0


def found_in(file: Path) -> list[dict[str, Any]]:
    """The rules that the daemon keeps; none where it has not kept any yet."""
    import sqlite3

    from cloudagent_daemon.link import asked

    if not file.exists():
        return []
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as spool:
        if not _has_rules(spool):
            return []
        found = asked.all_rules(spool)
    return [
        {"id": rule_id, "agent_id": agent_id, "conversation_id": conversation_id}
        | {name: value for name, value in json.loads(body).items() if name in _SHOWN}
        for rule_id, agent_id, conversation_id, body in found
    ]


_SHOWN: Final = {"tool", "action", "words", "by", "made_at"}


def _remove(here: Here, rule_id: str) -> None:
    import sqlite3

    from cloudagent_daemon.link import asked

    file, removed = _file(here), False
    if file.exists():
        # The daemon reads it before each decision: nothing has to be told.
        with closing(sqlite3.connect(file, timeout=5)) as spool, spool:
            removed = _has_rules(spool) and asked.remove_rule(spool, rule_id)
    if not removed:
        why = f"--remove {rule_id!r}"
        raise CommandError("There is no such rule", why, here.command("agent rules"), USAGE)
    print(f"removed {rule_id}: it is asked for again")


def _has_rules(spool: "sqlite3.Connection") -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'rules'"
    return spool.execute(sql).fetchone() is not None


def _file(here: Here) -> Path:
    return spool_file(here.paths.state_dir)


def _line(rule: dict[str, Any]) -> str:
    where = f"in {rule['conversation_id']}" if rule["conversation_id"] else "always"
    return (
        f"{rule['id']}  {rule['agent']}, {where}: {rule['words']}\n"
        f"               {rule['by']}, {str(rule['made_at'])[:16].replace('T', ' ')}"
    )
