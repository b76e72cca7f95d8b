"""A machine whose resolver a test can break: Python loads this first where it is on PYTHONPATH.

FAULTS_NAMES is a file with the names that are known, a line each; they are all 127.0.0.1. Everything
of Python's comes to the system's resolver by this one function.
"""

import os
import socket

_real = socket.getaddrinfo


def getaddrinfo(host, *rest, **options):
    if isinstance(host, str) and host.endswith(".localhost"):
        with open(os.environ["FAULTS_NAMES"], encoding="utf-8") as file:  # noqa: PTH123 (early)
            if host not in file.read().split():
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return _real(host, *rest, **options)


socket.getaddrinfo = getaddrinfo
