"""docs/verify.md: its table names every code, and its commands work and refuse."""

import base64
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aicert
from aicert.errors import AbsentError, Error
from aicert.policy_file import PolicyFileError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "verify.md").read_text()
CASE = ROOT / "tests" / "conformance" / "cases"


def classes(base: type[Error]) -> Iterator[type[Error]]:
    yield base
    for one in base.__subclasses__():
        yield from classes(one)


def of_the_verifier() -> Iterator[type[Error]]:
    """Every error class of the verifier, and of the command line."""
    for module in pkgutil.iter_modules(aicert.__path__):
        if module.name not in ("agent", "__main__"):
            importlib.import_module(f"aicert.{module.name}")
    for one in classes(Error):
        if re.fullmatch(r"aicert\.\w+", one.__module__):
            yield one


def test_every_error_tells_a_person_what_to_do() -> None:
    found = {one for one in of_the_verifier() if one not in (Error, AbsentError)}
    assert len(found) > 100
    for one in found - {PolicyFileError}:
        error = one("what is wrong")
        assert error.advice and error.to_json()["advice"] == error.advice, one
        assert one("what is wrong", advice="something else").advice == "something else"
    assert PolicyFileError("policy.yaml", ()).advice


def test_the_table_has_every_code_of_the_verifier_and_no_other() -> None:
    codes = {one.code for one in of_the_verifier()}
    listed = re.findall(r"^\| `([a-z0-9.-]+)` \| .+ \| .+ \|$", PAGE, re.MULTILINE)
    table = [code for code in listed if "." in code or code in ("error", "internal")]
    assert sorted(table) == sorted(codes)


def by_hand(certificate: Path, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the page's commands, in an empty folder."""
    for tool in ("jq", "openssl", "sha256sum", "python3"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    model = folder / "model"
    model.mkdir()
    for path, content in {"metrics.json": "{}", "model.safetensors": "weights"}.items():
        (model / path).write_text(content)
    (work := folder / "work").mkdir()
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=work,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "CERT": str(certificate), "MODEL": str(model)},
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["real-good", "good-ecc", "good-rsa"])
def test_the_commands_accept_a_good_certificate(name: str, tmp_path: Path) -> None:
    done = by_hand(CASE / name / "certificate.json", tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert done.stdout.count(b"Verified OK") == 3


def statement(value: Any) -> None:
    envelope = value["dsseEnvelope"]
    text = base64.b64decode(envelope["payload"]).replace(b'"sha256":"', b'"sha256":"0', 1)
    envelope["payload"] = base64.b64encode(text).decode()


def pcr(value: Any) -> None:
    value["evidence"]["quote"]["pcrs"]["sha256"]["14"] = "00" * 32


def event(value: Any) -> None:
    value["evidence"]["measurementLog"][0]["content"]["spec"]["name"] = "another"


def keyid(value: Any) -> None:
    value["dsseEnvelope"]["signatures"][0]["keyid"] = "000b" + "00" * 32


def swapped(value: Any) -> None:
    evidence = value["evidence"]
    evidence["quote"], evidence["baselineQuote"] = evidence["baselineQuote"], evidence["quote"]


def chain(value: Any) -> None:
    del value["evidence"]["attestationKey"]["certificateChain"][1]


@pytest.mark.parametrize("change", [statement, pcr, event, keyid, swapped, chain])
def test_the_commands_refuse_a_changed_one(change: Callable[[Any], None], tmp_path: Path) -> None:
    value = json.loads((CASE / "real-good" / "certificate.json").read_text())
    change(value)
    (tmp_path / "certificate.json").write_text(json.dumps(value))
    assert by_hand(tmp_path / "certificate.json", tmp_path).returncode != 0


@pytest.mark.parametrize(
    "name",
    ["quote-bad-magic", "ak-not-restricted", "boot-reset", "dsse-by-another-key",
     "chain-leaf-of-another-key"],
)  # fmt: skip
def test_the_commands_refuse_what_the_corpus_refuses(name: str, tmp_path: Path) -> None:
    assert by_hand(CASE / name / "certificate.json", tmp_path).returncode != 0
