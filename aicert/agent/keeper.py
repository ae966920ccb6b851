"""How a machine ends with the process that keeps it: a file that one of the two holds locked."""

import fcntl
import os
import threading
import time
from pathlib import Path

_LOOK_SECONDS = 0.2


def die_without(keeper: Path, outlive: float) -> None:
    """End this process `outlive` seconds after the last process that holds a file's lock."""
    descriptor = os.open(keeper, os.O_RDWR | os.O_CLOEXEC)

    def wait() -> None:
        while True:
            # Waits until its keeper lets go of it, for the kernel does that for a dead process.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            deadline = time.monotonic() + outlive
            try:
                while time.monotonic() < deadline:
                    time.sleep(_LOOK_SECONDS)
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            except BlockingIOError:
                continue  # somebody has adopted the machine
            # Not sys.exit: nothing may stand between the end of the keeper and that of the agent.
            os._exit(3)

    threading.Thread(target=wait, name="keeper", daemon=True).start()
