"""The real gemini and qwen tell which models they offer without a turn, and start nothing of the person's for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.drivers.models import Models
from cloudagent_protocol.resources import Runtime
from e2e.real_kits import (
    found,
    gemini_environment,
    gemini_settings,
    qwen_environment,
    qwen_settings,
)
from fakes.model import StubModel

pytestmark = [pytest.mark.slow, pytest.mark.real_cli]


@pytest.mark.parametrize(
    ("name", "prepare", "environment", "offered"),
    [
        ("gemini", gemini_settings, gemini_environment, "gemini-2.5-pro"),
        ("qwen", qwen_settings, qwen_environment, "stub-model"),
    ],
)
async def test_a_program_names_its_models_when_it_is_asked(
    tmp_path: Path,
    name: str,
    prepare: Callable[[Path, StubModel], None],
    environment: Callable[[StubModel], dict[str, str]],
    offered: str,
) -> None:
    log = tmp_path / "model.jsonl"
    with StubModel(log=log) as model:
        prepare(tmp_path, model)
        file = tmp_path / f".{name}" / "settings.json"
        settings: dict[str, Any] = json.loads(file.read_text())
        server = {"command": "/bin/sh", "args": ["-c", f"touch {tmp_path}/started; cat"]}
        file.write_text(json.dumps({**settings, "mcpServers": {"mine": server}}))
        path = str(Path(found(name).partition(":")[0]) / name)
        runtime, models = Runtime(name=name, path=path, version="1"), Models()
        await models.ask([runtime], {**environment(model), "HOME": str(tmp_path)})
    names = models.added([runtime])[0].models
    assert names
    assert offered in names
    assert not (tmp_path / "started").exists()
    asked = log.read_text() if log.exists() else ""
    assert "prompts" not in asked, "a turn was begun"
