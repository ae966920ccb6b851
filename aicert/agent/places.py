"""Where things are kept on the operator's side; loads nothing, so that a command starts at once."""

import os
from pathlib import Path


def default_state() -> Path:
    """Return the folder that holds the operator's CA and the machines."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "aicert"
