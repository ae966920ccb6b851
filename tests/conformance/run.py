"""Run the corpus against a verifier: `python -m tests.conformance.run -- VERIFIER [ARGUMENT …]`.

The verifier is called as

    VERIFIER CERTIFICATE --root ROOTS.pem [--model FOLDER] [OPTION …] --json

and must exit with 0 where the certificate verifies and with 1 where it is refused, printing JSON
with `error.code` for the reason. Another verifier may have other codes: `--verdicts` compares the
exit status alone. By default the verifier is `aicert verify`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOTS = HERE / "roots.pem"


@dataclass(frozen=True)
class Prepared:
    """A case on the disk, ready to be verified."""

    name: str
    expect: str
    arguments: tuple[str, ...]


def names() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.name for path in (HERE / "cases").iterdir())


def prepare(name: str, folder: Path) -> Prepared:
    """Put the files of a case into `folder`; links and pipes are made here, not kept in git."""
    source = HERE / "cases" / name
    described = json.loads((source / "case.json").read_text())
    certificate = source / "certificate.json"
    if "repeat" in described:
        text, count = described["repeat"]
        certificate = folder / "certificate.json"
        certificate.write_text(text * count)
    arguments = [str(certificate), "--root", str(ROOTS)]
    if described["model"] is not None:
        model = folder / "model"
        model.mkdir()
        for path, content in described["model"].items():
            _put(model / path, content)
        arguments += ["--model", str(model)]
    return Prepared(name, described["expect"], (*arguments, *described["options"], "--json"))


def _put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif "fifo" in content:
        os.mkfifo(path)
    else:
        (path.parent / content["link"]).write_text(content["content"])
        path.symlink_to(content["link"])


def verdict(verifier: Sequence[str], prepared: Prepared) -> str:
    """Return what the verifier says: `verified`, or the code of its refusal."""
    done = subprocess.run(
        [*verifier, *prepared.arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        return "verified"
    try:
        return str(json.loads(done.stdout)["error"]["code"]) if done.returncode == 1 else "crashed"
    except (ValueError, KeyError, TypeError):
        return "refused" if done.returncode == 1 else "crashed"


def main() -> int:
    """Run every case; return 0 where all are as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verdicts", action="store_true", help="compare the exit status alone")
    parser.add_argument("verifier", nargs="*", default=[sys.executable, "-m", "aicert", "verify"])
    options = parser.parse_args()
    wrong = 0
    for name in names():
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(name, Path(folder))
            got = verdict(options.verifier, prepared)
        same = got == prepared.expect
        if options.verdicts and got != "crashed":
            same = (got == "verified") == (prepared.expect == "verified")
        if not same:
            wrong += 1
            print(f"{name}: {got}, expected {prepared.expect}")
    print(f"{len(names()) - wrong} of {len(names())} cases as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
