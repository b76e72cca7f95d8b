"""What holds for every test."""

import signal


def pytest_configure() -> None:
    # Started in the background by a shell, pytest inherits an ignored SIGINT, and so would every
    # command under test: none of them could be stopped by Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
