"""One message on an idle system: from the POST to the frame at the host, against the bare prototype."""

import asyncio
import tempfile
from pathlib import Path

from benchmarks.load import open_loads
from benchmarks.measure import Figure, figure
from benchmarks.servers import Server, running_ours, running_reference

RUNS = 200


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        with (
            running_ours(folder / "ours", 1) as ours,
            running_reference(folder / "bare", 1) as bare,
        ):
            pairs = asyncio.run(_measure(ours, bare))
    return [
        figure(
            "one message: POST to frame",
            "bare prototype",
            pairs,
            goal="<= 2x, <= 3 ms",
            max_ratio=2,
            most=3,
        )
    ]


async def _measure(ours: Server, bare: Server) -> list[tuple[float, float]]:
    loads = await open_loads(ours, bare, 1)
    try:
        pairs = [(await loads[0].one(), await loads[1].one()) for _ in range(RUNS + 20)]
        return pairs[20:]
    finally:
        for load in loads:
            load.close()
