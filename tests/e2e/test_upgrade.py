"""Another version is installed while the daemon runs: row 41 of the fault matrix."""

import signal
import sys
from pathlib import Path

import pytest

from e2e.harness import Process, clean_environment
from fakes.installed import Installed
from faults.history import Done, Reply
from faults.site import count, site

pytestmark = pytest.mark.slow


def test_row41_an_upgrade_during_a_run_loses_nothing_and_the_new_version_goes_on(
    tmp_path: Path,
) -> None:
    installed = Installed(tmp_path / "venv")
    home, imports = tmp_path / "laptop", tmp_path / "imports"
    with site(tmp_path, 2) as place:
        place.log_in(home)
        env = clean_environment(home, FAKE_IMPORTS=str(imports))
        daemon = Process([str(installed.command), "start"], env=env, cwd=home)
        try:
            daemon.wait_for_line("Connected")
            with place.backend.follow() as events:
                place.post(1, "@@gate a", "@@answer about m0 #1")
                place.until_held(events, 1)
                assert (
                    place.backend.call("GET", f"/v1/host-machines/{place.host}")["daemon_version"]
                    == "0.3.0"
                )
                installed.remove()
                daemon.wait_for_line("the daemon's own files are gone")
                loaded = imports.read_text().count("\n")
                place.post(1)
                # Nothing is begun with what is not there, and what runs finishes.
                events.until(
                    lambda event: (
                        event["type"] == "delivery.updated"
                        and event["data"]["reason"] == "installation_gone"
                    )
                )
                (tmp_path / "agents" / "a.open").touch()
                events.reply(place.places[0].conversation)
                installed.add("0.3.1")
                daemon.wait_for_line("restarting: version 0.3.1 is installed")
                ours = [
                    line.split()[1]
                    for line in imports.read_text().splitlines()[loaded:]
                    if line.startswith(f"{daemon.popen.pid} ")
                ]
                daemon.wait_for_line("Connected")
                events.reply(place.places[1].conversation)
            late = {name.partition(".")[0] for name in ours} - sys.stdlib_module_names
            assert not late, f"imported after the start: {ours}"
            shown = place.backend.call("GET", f"/v1/host-machines/{place.host}")
            assert (shown["daemon_version"], shown["state"]) == ("0.3.1", "online")
            assert daemon.popen.poll() is None, "the process is the same"
            daemon.popen.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0
        finally:
            daemon.stop()
        place.settle()
        history = place.judge()
        assert count(history, Reply) == 2
        assert [record.outcome for record in history if isinstance(record, Done)] == ["replied"] * 2
