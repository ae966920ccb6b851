"""A Prefect server for one command: for those who have none.

Prefect starts one itself where no server is named, but that one outlives a killed command, stands
open to every user of the machine, and starts only after the imports. This one ends with the
process that started it, by the kernel's hand; asks for a secret; and starts beside the imports.
Its database stays in its home, so the history of artifacts does too.

This module imports no Prefect: its settings are read once, at the import, from what is set here.
"""

import atexit
import fcntl
import os
import secrets
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from aicert.errors import Error

START_SECONDS = 90.0

# As `python -m uvicorn` would. Loading it allocates much and frees nothing, so collecting garbage
# meanwhile is a fifth of the time in vain.
_PROGRAM = """
import gc, socket, sys
gc.disable()
import uvicorn
from prefect.server.api.server import create_app
app = create_app()
gc.freeze()
gc.enable()
config = uvicorn.Config(app, log_level="error", lifespan="on")
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])
"""


class ServerError(Error):
    """The Prefect server did not start."""

    code = "run.server"


class EphemeralServer:
    """A server that is starting; `wait` until it answers, `stop` when it is no longer needed."""

    def __init__(self, home: Path) -> None:
        """Start a server that keeps its database in `home`, and point this process to it."""
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = home / "server.log"
        # One at a time: two servers that make the same new database trip over each other.
        self._lock = os.open(home / "starting.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        password = f"aicert:{secrets.token_urlsafe(24)}"
        # Connections wait in it until the server takes them, so nobody has to ask again and again.
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        common = {
            name: value
            for name, value in os.environ.items()
            # A profile or a server of the user's own has no say here.
            if not name.startswith("PREFECT_") or name.startswith("PREFECT_LOGGING_")
        } | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            if name not in common:
                del os.environ[name]
        os.environ.update(common)
        os.environ["PREFECT_API_URL"] = self.url
        os.environ["PREFECT_API_AUTH_STRING"] = password
        with listener, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # It dies with the thread that starts it: the main one.
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *(sys.executable, "-c", _PROGRAM, str(listener.fileno())),
                ],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **common,
                    "PREFECT_SERVER_API_AUTH_STRING": password,
                    "PREFECT_UI_ENABLED": "0",
                    # As Prefect starts its own: only the services that one process needs.
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                start_new_session=True,  # an interrupt at the terminal is for the run, not for it
            )

    def wait(self) -> None:
        """Wait until the server answers; the second time that is at once.

        Raises:
            ServerError: it ended, or took too long.
        """
        if self._lock < 0:
            return
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=START_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # it answers
        except OSError as error:
            text = self._log.read_text("utf-8", "replace")
            raise ServerError(
                "the Prefect server did not start",
                got=text[-1500:].strip() or str(error),
                advice=f"see {self._log}; or set PREFECT_API_URL to a server that runs",
            ) from None
        os.close(self._lock)
        self._lock = -1

    def stop(self) -> None:
        """End the server."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_server: EphemeralServer | None = None


def start(home: Path) -> EphemeralServer | None:
    """Start the one server of this process; None where Prefect has one to talk to already.

    That is where `PREFECT_API_URL` names one, or where Prefect was imported before and so has read
    its settings. The server ends after Prefect has sent its last logs and events, at exit.
    """
    global _server
    if _server is None:
        if "PREFECT_API_URL" in os.environ or "prefect" in sys.modules:
            return None
        _server = EphemeralServer(home)
        # Handlers run last in, first out: this one is registered before any of Prefect's.
        atexit.register(_server.stop)
    return _server
