#!/usr/bin/env python3
"""A hook of mmdebstrap: record each installed package's version and SHA-256.

Called with the new root's path. The digests are those of the archive's signed package lists, which
apt held every download against.
"""

import json
import os
import sys
from pathlib import Path


def paragraphs(text: str) -> list[dict[str, str]]:
    """Return the paragraphs of a Debian control file, without continuation lines."""
    return [
        dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if not line.startswith(" ") and ": " in line
        )
        for paragraph in text.split("\n\n")
        if paragraph.strip()
    ]


def main() -> None:
    """Write name -> [version, SHA-256] to the file that AICERT_PACKAGES names."""
    root = Path(sys.argv[1])
    digests = {}
    for listing in (root / "var/lib/apt/lists").glob("*_Packages"):
        for item in paragraphs(listing.read_text()):
            digests[item["Package"], item["Version"]] = item["SHA256"]
    installed = paragraphs((root / "var/lib/dpkg/status").read_text())
    record = {
        item["Package"]: [item["Version"], digests.get((item["Package"], item["Version"]), "")]
        for item in installed
    }
    Path(os.environ["AICERT_PACKAGES"]).write_text(json.dumps(dict(sorted(record.items()))))


if __name__ == "__main__":
    main()
