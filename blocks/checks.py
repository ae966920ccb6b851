"""What a block finds when it looks whether it would work, and what a person can do where not."""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from aicert.agent.engine import Engine
from aicert.errors import Error

_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less the byte that ends it
_PROBE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: whether it is as it should be, and what to do if not."""

    name: str
    ok: bool
    found: str
    advice: str | None = None

    @classmethod
    def of(cls, name: str, problem: str | None, found: str, advice: str) -> "Check":
        """Make a check that has failed where there is a problem; only then it has advice."""
        return cls(name, problem is None, problem or found, None if problem is None else advice)

    @classmethod
    def failed(cls, name: str, error: Error) -> "Check":
        """Make a failed check of an error."""
        found = f"{error.message}; got {error.got}" if error.got else error.message
        return cls(name, False, found, error.advice)

    def __str__(self) -> str:
        """Return the check on one line."""
        advice = f". {self.advice}" if self.advice else ""
        return f"{'good' if self.ok else 'BAD '}  {self.name}: {self.found}{advice}"


def root() -> Check:
    """Look for root's rights, which namespaces and the container engine need."""
    problem = None if os.geteuid() == 0 else f"user {os.geteuid()} is not root"
    return Check.of("rights", problem, "root", "Run the worker as root, for instance with sudo")


def program(name: str, advice: str) -> Check:
    """Look for a program."""
    path = shutil.which(name)
    return Check.of(name, None if path else "not installed", path or "", advice)


def file(path: Path, advice: str) -> Check:
    """Look for a file that can be read."""
    problem = None if os.access(path, os.R_OK) else "not there"
    return Check.of(path.name, problem, str(path), advice)


def module(name: str, advice: str) -> Check:
    """Look for a Python module, without importing it."""
    found = importlib.util.find_spec(name) is not None
    return Check.of(name, None if found else "not installed", "installed", advice)


def namespaces() -> Check:
    """Find out whether a PID and mount namespace can be made here."""
    command = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--", "true"]
    problem = None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        if done.returncode:
            problem = done.stderr.strip() or f"unshare ended with status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return Check.of(
        "namespaces",
        problem,
        "can be made",
        "Run as root, outside of a container or in one with CAP_SYS_ADMIN",
    )


def engine(prefer: str | None) -> Check:
    """Find out whether the container engine answers."""
    with TemporaryDirectory() as directory:
        try:
            found = Engine.detect(Path(directory), prefer)
        except Error as error:
            return Check.failed("container engine", error)
        return Check("container engine", True, f"{found.name} {found.version}")


def state(folder: Path) -> Check:
    """Look whether machines can be kept in a folder."""
    socket = folder / "machines" / ("0" * 12) / "agent.sock"
    place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    problem = None
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        problem = f"{folder} is too long a path for the agent's socket"
    elif not place.is_dir():
        problem = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"{place} cannot be written to"
    return Check.of("state folder", problem, str(folder), "Set the block's state folder to another")


def device(path: Path) -> Check:
    """Look for the device of a TPM."""
    problem = None
    if not path.exists():
        problem = f"{path} is not there"
    elif not os.access(path, os.R_OK | os.W_OK):
        problem = f"{path} cannot be opened"
    return Check.of(
        "TPM device",
        problem,
        str(path),
        "Turn the TPM on in the firmware, or give the machine a virtual one; run as root",
    )
