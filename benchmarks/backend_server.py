"""The backend as `cloudagent-backend serve` runs it, but for its window.

The hosts of the load only acknowledge, they run nothing: with the usual window of 32 unfinished
deliveries each would be full after a moment. `python -m benchmarks.backend_server DATABASE WINDOW
[PORT]`
"""

import asyncio
import sys

from cloudagent_backend.config import Settings
from cloudagent_backend.server import Server, spare_the_collector
from cloudagent_backend.store.database import migrate


def main() -> None:
    database, window, port = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0])
    migrate(database)
    settings = Settings(database_url=f"sqlite:///{database}", port=port, window=window)
    server = Server(settings, lambda text: print(text, flush=True))
    spare_the_collector()
    asyncio.run(server.serve())


if __name__ == "__main__":
    main()
