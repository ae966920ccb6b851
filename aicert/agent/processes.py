"""Waiting for a process to end, and hearing of it at once."""

import os
import select
import subprocess


def await_end(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Return a process's exit status as soon as it ends.

    `Popen.wait` with a time limit looks every 50 ms; a file descriptor of the process is readable
    when it has ended (pidfd_open(2)).

    Raises:
        subprocess.TimeoutExpired: it has not ended within so many seconds.
    """
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(seconds * 1000)
        finally:
            os.close(descriptor)
    return process.wait(0)
