"""Evaluating: a real run on a certified model, and the certificate that binds the two."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prefect.client.schemas.objects import State

from aicert.cli import main
from blocks import FolderStore, LocalMachine
from flows.certify import certify
from flows.evaluate import evaluate
from tests.support.pipeline import CERTIFY, machines, published, write_spec

pytestmark = [pytest.mark.xdist_group("evaluate"), pytest.mark.usefixtures("prefect_server")]

LENGTH = (
    "n=$(wc -c < /inputs/model/model.bin); "
    "echo \"{\\\"bytes\\\": $n}\" > /outputs/metrics.json"
)  # fmt: skip
"""A benchmark of models: how long they are."""


class Place:
    """A certified model, and a folder to evaluate it in."""

    def __init__(self, folder: Path, state: Path, image: str) -> None:
        self.folder, self.state, self.image = folder, state, image
        self.store = folder / "store"
        spec = write_spec(folder / "job", CERTIFY, image=image)
        done = certify(
            spec_file=str(spec),
            machine=LocalMachine(state=state),
            store=FolderStore(folder=self.store),
            publish_weights=True,
        )
        self.model = self.store / "certificates" / str(done["digest"])

    def evaluate(self, bar: dict[str, Any], script: str = LENGTH, **parameters: Any) -> State[Any]:
        fields = {"name": "length", "evaluation": {"model": "model", "bar": bar}}
        spec = write_spec(self.folder / "bench", script, image=self.image, **fields)
        return self.run(spec, **parameters)

    def run(self, spec: Path, **parameters: Any) -> State[Any]:
        return evaluate(
            str(self.model / "certificate.json"),
            spec_file=str(spec),
            machine=LocalMachine(state=self.state),
            store=FolderStore(folder=self.store),
            return_state=True,
            **parameters,
        )

    def verify(self, *arguments: str | Path) -> Result:
        root = self.state / "ca" / "authority" / "root.pem"
        trust = ["--root", str(root), "--allow-simulated"]
        return CliRunner().invoke(main, ["verify", *map(str, arguments), *trust])


@pytest.fixture
def place(tmp_path: Path, state: Path, image: str) -> Iterator[Place]:
    yield Place(tmp_path, state, image)
    assert machines(state) == []


def test_an_evaluation_is_certified_and_bound_to_the_models_certificate(place: Place) -> None:
    # Below the spec's folder: so nothing of this machine's paths is measured.
    held = place.folder / "bench" / "the model"
    shutil.copytree(place.model / "weights", held)
    ended = place.evaluate({"bytes": {"atLeast": 5, "atMost": 7}}, weights=str(held))
    assert ended.is_completed(), ended.message
    assert "passed bytes >= 5 and bytes <= 7; bytes 6" in (ended.message or "")
    result = ended.result()
    assert result["result"] == "PASSED" and result["original"] == place.model.name

    made = place.store / "certificates" / result["digest"]
    model = place.model / "certificate.json"
    done = place.verify(model, "--model", place.model / "weights",
                        "--evaluation", made / "certificate.json", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["evaluations"][0]["metrics"] == {"bytes": 6}
    # The spec, and the bar in it, stand in the certificate's first event.
    first = json.loads((made / "certificate.json").read_bytes())["evidence"]["measurementLog"][0]
    assert first["content"]["spec"]["evaluation"]["bar"] == {"bytes": {"atLeast": 5, "atMost": 7}}
    linked = first["content"]["spec"]["inputs"][0]
    assert (linked["certificate"], linked["uri"]) == (place.model.name, "file:the%20model")


def test_a_model_that_fails_fails_the_run_and_that_is_certified(place: Place) -> None:
    ended = place.evaluate({"bytes": {"atLeast": 100}})
    assert ended.is_failed()
    assert "evaluation.failed" in (ended.message or "") and "bytes 6" in (ended.message or "")
    (made,) = set(published(place.store)) - {place.model.name}
    certificate = place.store / "certificates" / made / "certificate.json"
    done = place.verify(place.model / "certificate.json", "--evaluation", certificate)
    assert done.exit_code == 0 and "FAILED bytes >= 100" in done.output


def test_nothing_is_evaluated_where_something_is_wrong(place: Place) -> None:
    shutil.copytree(place.model / "weights", place.folder / "other")
    (place.folder / "other" / "model.bin").write_text("changed")
    silent = {"script": "true"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weights": str(place.folder / "other")}, "files.altered"),
        ({"weights": "/nowhere"}, "original.unreadable"),
        (silent, "outputs"),
    ]
    for parameters, code in cases:
        ended = place.evaluate({}, **parameters)
        assert ended.is_failed() and code in (ended.message or ""), ended.message
    plain = write_spec(place.folder / "plain", LENGTH, image=place.image)
    ended = place.run(plain)
    assert ended.is_failed() and "evaluation.spec" in (ended.message or "")
    assert published(place.store) == (place.model.name,)


def test_an_evaluation_without_a_model_is_refused_before_anything_is_started(place: Place) -> None:
    fields = {"evaluation": {"model": "model", "bar": {}}}
    spec = write_spec(place.folder / "open", LENGTH, image=place.image, **fields)
    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=place.state),
        store=FolderStore(folder=place.store),
        return_state=True,
    )
    assert ended.is_failed() and "aicert evaluate" in (ended.message or "")


def test_a_chain_from_a_base_to_an_evaluation_is_verified_as_one(place: Place) -> None:
    command = "cat /inputs/base/model.bin /inputs/data/* > /outputs/model.bin"
    spec = write_spec(place.folder / "tune", command, image=place.image, name="tuned")
    options: dict[str, Any] = {
        "machine": LocalMachine(state=place.state),
        "store": FolderStore(folder=place.store),
    }
    base = {"base": str(place.model / "certificate.json")}
    made = certify(spec_file=str(spec), certified=base, publish_weights=True, **options)
    place.model = place.store / "certificates" / str(made["digest"])
    ended = place.evaluate({"bytes": {"atLeast": 12, "atMost": 12}})
    assert ended.is_completed(), ended.message
    last = place.store / "certificates" / ended.result()["digest"] / "certificate.json"
    done = place.verify(last, "--recursive")
    assert done.exit_code == 0 and "2 certificates behind it verified" in done.output, done.output


def test_an_input_that_is_not_the_certified_model_is_not_trained_on(place: Place) -> None:
    (place.model / "weights" / "model.bin").write_text("changed")
    spec = write_spec(place.folder / "tune", "true", image=place.image)
    for name, code in (("base", "files.altered"), ("data", "original.other")):
        ended = certify(
            spec_file=str(spec),
            certified={name: str(place.model / "certificate.json")},
            machine=LocalMachine(state=place.state),
            store=FolderStore(folder=place.store),
            return_state=True,
        )
        assert ended.is_failed() and code in (ended.message or ""), ended.message
        (place.model / "weights" / "model.bin").write_text("hello\n")
