"""Child processes: each in its own session, with bounded pumps, and never outliving its scope."""


async def end_leftover(pid: int, started_at: float, launch_id: str) -> int:
    """Ends what is left of a process tree that an earlier life of the daemon started.

    Finds the process by (pid, creation time), its descendants, and every process that carries
    `CLOUDAGENT_LAUNCH_ID=<launch_id>` in its environment.

    Returns:
        How many processes were ended. Returns within about 5 s in any case.
    """
    raise NotImplementedError
