"""Run the corpus against a verifier: `python -m tests.conformance.run -- VERIFIER [ARGUMENT …]`.

The verifier is called as

    VERIFIER CERTIFICATE --root ROOTS.pem [--model FOLDER] [OPTION …] --json

and must exit with 0 where the certificate verifies, with 1 where it is refused, and with 3 where
the verifier's own files (a policy, reference values) cannot be used, printing JSON with
`error.code` for the reason. Another verifier may have other codes: `--verdicts` compares alone
whether it verifies. By default the verifier is `aicert verify`. The README beside this file
describes a case's files.
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
    status: int = 0
    answer: Any = None


def names() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.name for path in (HERE / "cases").iterdir())


def expected(name: str) -> str:
    """Return what a verifier must say of a case."""
    return str(json.loads((HERE / "cases" / name / "case.json").read_text())["expect"])


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
    options = [option.replace("{case}", str(source)) for option in described["options"]]
    expect = described["expect"]
    return Prepared(
        name,
        expect,
        (*arguments, *options, "--json"),
        described.get("status", 0 if expect == "verified" else 1),
        described.get("answer", {}),
    )


def _put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif "fifo" in content:
        os.mkfifo(path)
    else:
        (path.parent / content["link"]).write_text(content["content"])
        path.symlink_to(content["link"])


def verdict(verifier: Sequence[str], prepared: Prepared, *, alone: bool = False) -> str:
    """Return what the verifier says: `verified`, or the code of its refusal.

    What is not as the case asks (status, answer) makes it something else, unless `alone`.
    """
    done = subprocess.run(
        [*verifier, *prepared.arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode not in (0, 1, 3):
        return "crashed"
    if alone:
        return "refused" if done.returncode else "verified"
    try:
        answer = json.loads(done.stdout)
        said = "verified" if done.returncode == 0 else str(answer["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "verified" if done.returncode == 0 and not prepared.answer else "refused"
    if done.returncode != prepared.status:
        said += f" with exit status {done.returncode}"
    return said if contains(answer, prepared.answer) else f"{said}, with another answer"


def contains(answer: Any, expected: Any) -> bool:
    """Tell whether an answer has the fields that are expected, at every depth."""
    if not isinstance(expected, dict):
        return bool(answer == expected)
    return isinstance(answer, dict) and all(
        key in answer and contains(answer[key], value) for key, value in expected.items()
    )


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
            got = verdict(options.verifier, prepared, alone=options.verdicts)
        expect = prepared.expect
        if options.verdicts and expect != "verified":
            expect = "refused"
        same = got == expect
        if not same:
            wrong += 1
            print(f"{name}: {got}, expected {expect}")
    print(f"{len(names()) - wrong} of {len(names())} cases as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
