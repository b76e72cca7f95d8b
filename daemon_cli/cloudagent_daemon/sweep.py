"""What a guardian becomes where it cannot adopt orphans (macOS), once the daemon is dead.

python -m cloudagent_daemon.sweep PID CREATED_AT LAUNCH_ID
"""

import sys

import anyio

from cloudagent_daemon.process import end_leftover


def main() -> None:
    pid, created_at, launch_id = sys.argv[1:]
    anyio.run(end_leftover, int(pid), float(created_at), launch_id)


if __name__ == "__main__":
    main()
