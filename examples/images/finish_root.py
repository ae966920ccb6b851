#!/usr/bin/env python3
"""A hook of mmdebstrap, called with the new root's path when all packages are installed.

It records each package's version and SHA-256 in the file that AICERT_PACKAGES names (the digests
are those of the archive's signed package lists, which apt held every download against), and then
removes what AICERT_PRUNE names (globs below the root, separated by colons).
"""

import json
import os
import shutil
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
    """Record the packages, then prune."""
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
    for pattern in os.environ["AICERT_PRUNE"].split(":"):
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
