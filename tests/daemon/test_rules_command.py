"""`agent rules`: what was allowed for longer is listed, and taken back."""

import argparse
import json
from pathlib import Path

import pytest

from cloudagent_daemon.cli import rules
from cloudagent_daemon.cli.options import CommandError
from cloudagent_daemon.link.spool import open_spool
from cloudagent_daemon.paths import spool_file
from cloudagent_daemon.runs.rules import Rule
from cloudagent_protocol.ids import AgentId, ConversationId

AGENT, HERE = AgentId("agent_a"), ConversationId("conv_1")


def asked(**more: object) -> argparse.Namespace:
    return argparse.Namespace(**{"agent_id": None, "remove": None, "json": False} | more)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path / ".cloudagent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return spool_file(tmp_path / ".cloudagent" / "daemon")


async def test_rules_are_listed_and_one_that_is_removed_counts_no_more(
    spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rules.run(asked()) == 0
    assert "there are no rules" in capsys.readouterr().out
    made = Rule(
        tool="Bash", action="execute", what="make", cwd="/src", context="c",
        words="exactly the command `make` in /src", by="Ana",
    )  # fmt: skip
    async with open_spool(spool) as memory:
        await memory.add_rule("rule_1", AGENT, None, made.model_dump_json())
        await memory.add_rule("rule_1", AGENT, None, made.model_dump_json())
        await memory.add_rule("rule_2", AGENT, HERE, made.model_dump_json())
        rules.run(asked())
        shown = capsys.readouterr().out
        assert "rule_1  agent_a, always: exactly the command `make` in /src" in shown
        assert "rule_2  agent_a, in conv_1: exactly" in shown
        assert len(await memory.rules(AGENT, HERE)) == 2
        assert len(await memory.rules(AGENT, ConversationId("conv_2"))) == 1

        assert rules.run(asked(remove="rule_1")) == 0
        assert len(await memory.rules(AGENT, HERE)) == 1
        with pytest.raises(CommandError, match="no such rule"):
            rules.run(asked(remove="rule_1"))
        capsys.readouterr()
        rules.run(asked(json=True, agent_id=AGENT))
        body = json.loads(capsys.readouterr().out)
        assert (body["schema"], [one["id"] for one in body["rules"]]) == (
            "cloudagent.rules/1",
            ["rule_2"],
        )
        rules.run(asked(json=True, agent_id="agent_b"))
        assert json.loads(capsys.readouterr().out)["rules"] == []
