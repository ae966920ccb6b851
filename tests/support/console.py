"""The shell of a debug image, on the console of a machine that booted it."""

import itertools
import socket
import time
from pathlib import Path

SECONDS = 300.0


class Shell:
    """Gives commands to the shell and reads what they say."""

    def __init__(self, terminal: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(terminal))
        self._socket.settimeout(1)
        self._numbers = itertools.count()

    def run(self, command: str) -> tuple[int, str]:
        """Return a command's status, and what it and the kernel wrote meanwhile."""
        number = next(self._numbers)
        # What is typed is shown too: it must not look like the answer.
        line = f"echo BEG''IN{number}; {command}; echo EN''D{number}=$?.\n"
        self._socket.sendall(line.encode())
        begin, end = f"BEGIN{number}\r\n", f"END{number}="
        said = ""
        deadline = time.monotonic() + SECONDS
        while end not in said or "." not in said.partition(end)[2]:
            if time.monotonic() > deadline:
                raise AssertionError(f"{command!r} does not end:\n{said[-2000:]}")
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise AssertionError(f"the machine ended:\n{said[-2000:]}")
            said += data.decode("utf-8", "replace")
        answer, _, rest = said.partition(begin)[2].partition(end)
        return int(rest.partition(".")[0]), answer.replace("\r", "")
