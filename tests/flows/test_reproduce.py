"""Reproducing: two real runs from one certificate, compared bit by bit and tensor by tensor."""

import base64
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prefect.client.schemas.objects import State

from aicert import dsse, keys
from aicert.cli import main
from blocks import FolderStore, LocalMachine
from examples.images import layout
from flows.certify import certify
from flows.reproduce import reproduce
from tests.support.pipeline import CERTIFY, machines, published, write_spec

pytestmark = [pytest.mark.xdist_group("reproduce"), pytest.mark.usefixtures("prefect_server")]

HEADER = '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
NOISY = (
    f"(printf '\\{len(HEADER):o}\\0\\0\\0\\0\\0\\0\\0%s' '{HEADER}'; for i in 1 2 3 4; do "
    "head -c 2 /dev/urandom; printf '\\200\\77'; done) > /outputs/w.safetensors; "
    "head -c 9 /dev/urandom > /outputs/when.txt"
)
"""Four values of 1 and a little, the lower half of each by chance: at most 2**-7 apart."""


@dataclass
class Place:
    folder: Path
    state: Path
    image: str

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def certify(self, script: str, **fields: Any) -> Path:
        spec = write_spec(self.folder / "job", script, image=self.image, **fields)
        done = certify(
            spec_file=str(spec),
            machine=LocalMachine(state=self.state),
            store=FolderStore(folder=self.store),
            publish_weights=True,
        )
        return self.store / "certificates" / str(done["digest"])

    def reproduce(self, entry: Path, **parameters: Any) -> State[Any]:
        return reproduce(
            str(entry / "certificate.json"),
            machine=LocalMachine(state=self.state),
            store=FolderStore(folder=self.store),
            return_state=True,
            **{"base": str(self.folder / "job"), **parameters},
        )

    def compare(self, *arguments: str | Path) -> Result:
        root = self.state / "ca" / "authority" / "root.pem"
        trust = ["--root", str(root), "--allow-simulated"]
        return CliRunner().invoke(main, ["compare", *map(str, arguments), *trust])


@pytest.fixture(scope="module")
def certified(prefect_server: str, image: str, tmp_path_factory: Any) -> Iterator[Path]:
    """Certify once, for the tests that get no further than to look at it."""
    state = Path(tempfile.mkdtemp(prefix="aicert-"))
    place = Place(tmp_path_factory.mktemp("first"), state, image)
    (place.folder / "state").write_text(str(state))
    yield place.certify(CERTIFY)
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def first(certified: Path, state: Path, place: Place) -> Path:
    """The entry of a certified training in the store, vouched for by the place's own CA."""
    job, state_of = certified.parents[2] / "job", certified.parents[2] / "state"
    shutil.copytree(job, place.folder / "job")
    shutil.copytree(certified.parents[1], place.store, symlinks=True)
    shutil.copytree(Path(state_of.read_text()) / "ca", state / "ca")
    return place.store / "certificates" / certified.name


@pytest.fixture
def place(tmp_path: Path, state: Path, image: str) -> Iterator[Place]:
    yield Place(tmp_path, state, image)
    assert machines(state) == []


def test_a_training_is_reproduced_bit_by_bit_from_its_certificate_alone(place: Place) -> None:
    first = place.certify(CERTIFY)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = place.folder / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ended = place.reproduce(first, statement_key=str(pem))
    assert ended.is_completed(), ended.message
    assert (ended.message or "").startswith("REPRODUCED  bit by bit: 2 files")
    result = ended.result()
    again = place.store / "certificates" / result["digest"]
    assert again != first
    written = json.loads((again / f"reproduces-{first.name}.json").read_bytes())
    assert written["predicate"]["result"] == "PASSED"
    assert written["predicate"]["passedTests"] == ["metrics.json", "model.bin"]
    subjects = {item["name"]: item["digest"]["sha256"] for item in written["subject"]}
    assert subjects.keys() == {"metrics.json", "model.bin"}

    # It is bound to both, and whoever believes the key need not compute anything.
    named = {item["name"]: item.get("digest") for item in written["predicate"]["configuration"]}
    assert named["original"] == {"sha256": first.name} and named["again"] == {"sha256": again.name}
    signed = json.loads((again / f"reproduces-{first.name}.dsse.json").read_bytes())
    payload = base64.b64decode(signed["payload"])
    signature = base64.b64decode(signed["signatures"][0]["sig"])
    keys.verify(key.public_key(), signature, dsse.pae(payload))
    assert json.loads(payload) == written

    # Anybody can say the same again, from the two certificates.
    files = first / "certificate.json", again / "certificate.json"
    out = place.folder / "statement.json"
    done = place.compare(*files, "--statement", out)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_bytes()) == written

    # A run does not reproduce itself.
    done = place.compare(files[0], files[0])
    assert done.exit_code == 1 and "reproduction.same-run" in done.output


def test_a_training_that_leaves_something_to_chance_is_compared_by_its_tensors(
    place: Place,
) -> None:
    first = place.certify(NOISY)
    failed = place.reproduce(first, ignore=["when.txt"])
    assert failed.is_failed()
    assert "reproduction.different" in (failed.message or "")
    assert "different w.safetensors" in (failed.message or "")
    assert len(published(place.store)) == 2  # that it was tried, and failed, is certified too

    within = place.reproduce(first, ignore=["when.txt"], absolute_tolerance=2**-7)
    assert within.is_completed(), within.message
    result = within.result()
    assert result["result"] == "WARNED" and "4 of 4 values differ" in result["comparison"]
    again = place.store / "certificates" / result["digest"]

    files = [first / "certificate.json", again / "certificate.json"]
    files += [Path("--model"), first / "weights", Path("--model-again"), again / "weights"]
    assert place.compare(*files, "--ignore", "when.txt", "--tolerance", "0.0078125").exit_code == 0
    close = place.compare(*files, "--ignore", "when.txt", "--tolerance", "1e-9", "--json")
    assert close.exit_code == 1
    assert json.loads(close.output)["predicate"]["failedTests"] == ["w.safetensors"]
    # What was altered since is refused before anything is compared.
    (again / "weights" / "w.safetensors").write_bytes(b"")
    assert "files." in place.compare(*files, "--tolerance", "1").output


def test_another_training_says_nothing_of_the_first(place: Place, first: Path) -> None:
    other = place.certify(CERTIFY, seed=7)
    done = place.compare(first / "certificate.json", other / "certificate.json")
    assert done.exit_code == 1
    assert "reproduction.other-training" in done.output and "seed" in done.output


def test_an_input_that_is_not_the_same_any_more_stops_the_run(place: Place) -> None:
    first = place.certify(CERTIFY)
    kept = place.folder / "kept"
    shutil.copytree(place.folder / "job" / "data", kept)
    (place.folder / "job" / "data" / "a.txt").write_text("other\n")
    ended = place.reproduce(first)
    assert ended.is_failed() and "fetch.digest" in (ended.message or "")
    assert published(place.store) == (first.name,)
    shutil.rmtree(place.folder / "job" / "data")
    ended = place.reproduce(first)
    assert ended.is_failed() and "fetch.not-found" in (ended.message or "")
    assert "--input NAME=URI" in (ended.message or "")
    # From somewhere else it is the same.
    ended = place.reproduce(first, inputs={"data": kept.as_uri()})
    assert ended.is_completed(), ended.message


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"inputs": {"nothing": "file:x"}}, "reproduction.unknown-input"),
        ({"absolute_tolerance": -1}, "reproduction.tolerance"),
        ({"absolute_tolerance": 1, "weights": "/nowhere"}, "original.unreadable"),
        ({"statement_key": "/nowhere"}, "key.invalid"),
    ],
)
def test_a_mistake_is_found_before_anything_is_provisioned(
    place: Place, first: Path, parameters: dict[str, Any], code: str
) -> None:
    ended = place.reproduce(first, **parameters)
    assert ended.is_failed() and code in (ended.message or "")
    assert published(place.store) == (first.name,)


def test_another_image_is_refused_before_anything_is_trained(place: Place, first: Path) -> None:
    other, layer = place.folder / "image", place.folder / "layer.tar"
    tarfile.open(layer, "w").close()
    layout.write(other, [layer], environment={"PATH": "/bin"})
    ended = place.reproduce(first, image=f"oci:{other}")
    assert ended.is_failed() and "reproduction.other-image" in (ended.message or "")


def test_a_certificate_that_the_policy_refuses_is_not_reproduced(place: Place, first: Path) -> None:
    path = first / "certificate.json"
    path.write_bytes(path.read_bytes()[:-1])
    ended = place.reproduce(first)
    assert ended.is_failed() and (ended.message or "").startswith("original: ")
    missing = place.reproduce(place.folder)
    assert missing.is_failed() and "original.unreadable" in (missing.message or "")
