"""The recorded fake agent, with two more orders.

====================  =============================================================================
``@@gate NAME``       say so (`NAME.reached`), and go on only once `NAME.open` is there
``@@variables``       write its whole environment to `variables.json`
====================  =============================================================================
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.agent_cli import STATE, main
from faults.agent import RecordedAgent, override


class GatedAgent(RecordedAgent):
    @override
    def do_gate(self, rest: str, earlier: list[str]) -> None:
        self.text(f"at gate {rest}")
        (Path(STATE) / f"{rest}.reached").touch()
        while not (Path(STATE) / f"{rest}.open").exists():
            time.sleep(0.02)

    def do_variables(self, rest: str, earlier: list[str]) -> None:
        (Path(STATE) / "variables.json").write_text(json.dumps(dict(os.environ)))


if __name__ == "__main__":
    sys.exit(main(GatedAgent))
