"""What a coding agent starts as its MCP server: a pipe between its stdio and the daemon's socket.

    python -I -S shim.py SOCKET TOKEN_FILE

Standard library only, and little of it: CLIs wait about two seconds for their MCP servers and then
run without them, so the time this needs to start decides whether an agent has tools at all. Hence
`_thread` instead of `threading`, and `_socket`, which `socket` wraps in code that takes longer to
import than all the rest here.
"""

import _socket
import _thread
import os
import sys


def main() -> None:
    _, path, token_file = sys.argv
    with open(token_file, encoding="ascii") as file:  # noqa: PTH123 (pathlib takes 8 ms to import)
        token = file.read()
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sys.exit(f"The daemon's bridge at {path} does not answer: {error}")
    sock.sendall(b'{"token": "%s"}\n' % token.encode())
    _thread.start_new_thread(_answers, (sock,))
    while data := os.read(0, 65_536):
        sock.sendall(data)
    # The agent is done; the daemon closes its side once it has answered what was asked.
    sock.shutdown(_socket.SHUT_WR)
    _wait_for_ever()


def _answers(sock: "_socket.socket") -> None:
    """From the daemon to the agent, until either is gone; then the process ends."""
    code = 0
    try:
        while data := sock.recv(65_536):
            while data:
                data = data[os.write(1, data) :]
    except OSError:
        code = 1
    os._exit(code)


def _wait_for_ever() -> None:
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire()  # `_answers` ends the process


if __name__ == "__main__":
    main()
