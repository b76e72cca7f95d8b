"""A machine whose resolver and clock a test can break: Python loads this first on PYTHONPATH.

FAULTS_NAMES is a file with the names that are known, a line each; they are all 127.0.0.1. Everything
of Python's comes to the system's resolver by this one function. FAULTS_CLOCK is a file with the
seconds by which the clock on the wall is ahead; the monotonic one knows nothing of it, as when a
machine sleeps, or its clock is set.
"""

import datetime
import os
import socket
import time

_real = socket.getaddrinfo


def getaddrinfo(host, *rest, **options):
    if isinstance(host, str) and host.endswith(".localhost"):
        with open(os.environ["FAULTS_NAMES"], encoding="utf-8") as file:  # noqa: PTH123 (early)
            if host not in file.read().split():
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return _real(host, *rest, **options)


def ahead_s():
    with open(os.environ["FAULTS_CLOCK"], encoding="utf-8") as file:  # noqa: PTH123 (early)
        return float(file.read() or 0)


def ahead():
    return _real_time() + ahead_s()


def ahead_ns():
    return _real_time_ns() + round(ahead_s()) * 10**9


class _Meta(type):
    def __instancecheck__(cls, one):
        return isinstance(one, _real_datetime)


class Datetime(datetime.datetime, metaclass=_Meta):
    """A `now` that follows the clock; all else is a date like any other."""

    @classmethod
    def now(cls, tz=None):
        return _real_datetime.fromtimestamp(ahead(), tz)


_real_time, _real_time_ns = time.time, time.time_ns
_real_datetime = datetime.datetime
if "FAULTS_NAMES" in os.environ:
    socket.getaddrinfo = getaddrinfo
if "FAULTS_CLOCK" in os.environ:
    time.time, time.time_ns, datetime.datetime = ahead, ahead_ns, Datetime
