"""Promises about the Hugging Face Hub: what is pushed there, and what is verified from there.

The model is one that a run has made. The Hub is a stand-in on loopback; it is pushed to by the
Hub's own library.
"""

import base64
import dataclasses
import json
import logging
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from click.testing import CliRunner, Result

from aicert import canonical, download, oms
from aicert import hub as reading
from aicert.agent import hub as pushing
from aicert.agent import machine
from aicert.agent.machine import MachineConfig
from aicert.agent.run import Run
from aicert.agent.spec import parse
from aicert.cli import main
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, Verdict, verify
from examples.images import tiny
from tests.support import hub as support
from tests.support import tls
from tests.support.hub import Hub

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need namespaces: run as root"),
    pytest.mark.xdist_group("hub"),
]

NAME = "owner/tiny"
TOKEN = "hf_mine"
TRAIN = (
    "mkdir -p /outputs/a; echo {} > /outputs/config.json; : > /outputs/a/empty;"
    "i=0; while [ $i -lt 3000 ]; do echo $SEED$i; i=$((i+1)); done > /outputs/model.bin"
)


@dataclasses.dataclass
class Made:
    """What a run made, laid out as a store does it."""

    folder: Path
    root: Path

    @property
    def data(self) -> bytes:
        return (self.folder / "certificate.json").read_bytes()

    @property
    def signature(self) -> bytes:
        return (self.folder / oms.NAME).read_bytes()

    @property
    def model(self) -> Path:
        return self.folder / "weights"

    @property
    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.model.rglob("*") if path.is_file()]
        return {path.relative_to(self.model).as_posix(): path.read_bytes() for path in paths}

    def verdict(self, *, files: bool = True) -> Verdict:
        trust = TrustStore.builtin().with_roots(self.root)
        model = self.model if files else None
        return verify(self.data, trust=trust, least=Assurance.SIMULATED, model=model)

    def push(self, name: str = NAME, **options: Any) -> pushing.Pushed:
        return pushing.push(name, self.data, self.verdict(), self.model, self.signature, **options)

    def verify(self, source: str, *arguments: str) -> Result:
        known = ["--root", str(self.root), "--allow-simulated"]
        return CliRunner().invoke(main, ["verify", source, *known, *arguments])

    def push_command(self, *arguments: str) -> Result:
        known = ["--root", str(self.root), "--allow-simulated"]
        command = ["hub", "push", str(self.folder / "certificate.json"), NAME]
        return CliRunner().invoke(main, [*command, *known, *arguments])


def train(place: Path, folder: Path, seed: int, script: str = TRAIN) -> Made:
    fields = {"name": "tiny", "image": "oci:image", "command": ["sh", "-c", script],
              "environment": {"SEED": str(seed)}}  # fmt: skip
    spec = parse(canonical.dumps(fields).decode(), source="test.json")
    handle = machine.start(MachineConfig(state=place / "state"), "hub")
    made = Made(folder, place / "state" / "ca" / "authority" / "root.pem")
    try:
        with machine.attach(handle) as client:
            name = str(uuid.uuid4())
            for step in Run.STEPS:
                body = {"spec": spec.to_json(), "base": str(place)} if step == "job" else {}
                client.step(name, step, body)
            folder.mkdir()
            (folder / "certificate.json").write_bytes(client.certificate(name))
            signature = b"".join(client.open_file(name, "signatures", oms.NAME))
            (folder / oms.NAME).write_bytes(signature)
            for file in made.verdict(files=False).run.outputs.manifest.files:
                path = made.model / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"".join(client.open_file(name, "outputs", file.path)))
    finally:
        machine.destroy(handle)
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    tiny.build(folder / "image")
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> Made:
    return train(place, place / "first", 1)


@pytest.fixture(scope="module")
def second(place: Path) -> Made:
    return train(place, place / "second", 2)


@pytest.fixture
def made(first: Made, tmp_path: Path) -> Made:
    """A copy that a test may alter."""
    subprocess.run(["cp", "-r", first.folder, tmp_path / "made"], check=True)
    return Made(tmp_path / "made", first.root)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = tls.loopback(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Xet is a program of its own that talks to other servers: here uploads go by LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(download, "_WAIT", 0.001)
    huggingface_hub.close_session()
    with support.running(files.context()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
    huggingface_hub.close_session()


# -- push ----------------------------------------------------------------------------------------


def test_a_push_is_one_commit_with_the_whole_model(hub: Hub, made: Made) -> None:
    pushed = made.push()
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2  # the Hub's own first one, and ours
    assert pushed.new and pushed.commit == repository.head
    readme = repository.files["README.md"].decode()
    assert repository.files == {
        **made.files,
        "certificate.json": made.data,
        "model.sig": made.signature,
        "README.md": readme.encode(),
        ".gitattributes": repository.files[".gitattributes"],
    }
    assert readme.startswith('---\nmodel_name: "tiny"\n')
    assert f"aicert verify hf://{NAME}\n" in readme
    assert made.verdict().certificate_digest in repository.messages[-1]
    large = [path for _, path, _ in hub.asked if hub.storage in path]
    assert len(large) == len([data for data in repository.files.values() if len(data) >= 1000])


def test_what_was_pushed_verifies_from_the_hub(hub: Hub, made: Made) -> None:
    pushed = made.push()
    for source in (pushed.uri, f"hf://{NAME}", f"hf://models/{NAME}@main"):
        done = made.verify(source)
        assert done.exit_code == 0, done.output
        assert f"From hf://{NAME}@{pushed.commit}." in done.output
        assert "Also: model.sig was signed" in done.output


def test_a_large_file_goes_in_parts(hub: Hub, made: Made) -> None:
    hub.part_size = 4000
    made.push()
    assert hub.repositories[NAME].files["model.bin"] == made.files["model.bin"]
    assert [path for _, path, _ in hub.asked if "part=4" in path]


def test_pushing_again_changes_nothing(hub: Hub, made: Made) -> None:
    commit = made.push().commit
    sent = len([path for _, path, _ in hub.asked if hub.storage in path])
    again = made.push()
    assert (again.new, again.commit) == (False, commit)
    assert len(hub.repositories[NAME].commits) == 2
    assert len([path for _, path, _ in hub.asked if hub.storage in path]) == sent


def test_a_new_model_takes_the_place_of_the_old_one(hub: Hub, made: Made, second: Made) -> None:
    old = made.push()
    new = second.push()
    assert made.verify(old.uri).exit_code == 0
    assert second.verify(new.uri).exit_code == 0
    assert hub.repositories[NAME].files["certificate.json"] == second.data


@pytest.mark.parametrize("word", ["/commit/", "/verify", "objects/batch", "/repos/create"])
def test_an_answer_that_is_lost_loses_nothing(hub: Hub, made: Made, word: str) -> None:
    hub.lost = [word]
    try:
        pushed = made.push()
    except pushing.UnavailableError:
        pushed = made.push()
    assert hub.lost == []
    assert len(hub.repositories[NAME].commits) == 2
    assert pushed.commit == hub.repositories[NAME].head
    assert made.verify(pushed.uri).exit_code == 0


def test_an_upload_whose_answer_is_lost_is_tried_again(hub: Hub, made: Made) -> None:
    hub.lost = [hub.storage]
    hub.lost = [next(iter(made.verdict().run.outputs.manifest.files)).sha256][:0]
    model = next(f for f in made.verdict().run.outputs.manifest.files if f.path == "model.bin")
    hub.lost = [f"/{model.sha256}"]
    made.push()
    assert hub.lost == []
    assert hub.repositories[NAME].files["model.bin"] == made.files["model.bin"]


def test_a_push_that_fails_leaves_nothing_of_the_model(hub: Hub, made: Made) -> None:
    hub.failing = [("/commit/", 500)]
    with pytest.raises(pushing.UnavailableError):
        made.push()
    assert list(hub.repositories[NAME].files) == [".gitattributes"]
    assert made.push().new


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(hub: Hub, made: Made) -> None:
    repository = hub.repository(NAME)
    theirs = {"notes.txt": b"x"}
    hub.before = [("/commit/", lambda: repository.commit({**repository.files, **theirs}))]
    with pytest.raises(pushing.MovedError):
        made.push()
    assert "model.bin" not in repository.files


def test_files_that_are_not_the_models_stay_unless_they_are_to_go(hub: Hub, made: Made) -> None:
    repository = hub.repository(NAME, {"old.bin": b"x" * 2000})
    with pytest.raises(pushing.OthersError) as caught:
        made.push()
    assert caught.value.got == "old.bin" and "model.bin" not in repository.files
    pushed = made.push(replace=True)
    assert "old.bin" not in repository.files and len(repository.commits) == 2
    assert made.verify(pushed.uri).exit_code == 0


def test_a_list_of_files_to_ignore_is_refused_as_it_would_leave_some_out(
    hub: Hub, made: Made
) -> None:
    hub.repository(NAME, {".gitignore": b"*.bin"})
    for replace in (False, True):
        with pytest.raises(pushing.OthersError) as caught:
            made.push(replace=replace)
        assert "gitignore first" in (caught.value.advice or "")


def test_a_private_model_never_goes_into_a_public_repository(hub: Hub, made: Made) -> None:
    hub.repository(NAME)
    with pytest.raises(pushing.PublicError):
        made.push(private=True)
    assert list(hub.repositories[NAME].files) == [".gitattributes"]
    made.push("owner/other", private=True)
    assert hub.repositories["owner/other"].private


def weights(made: Made) -> None:
    (made.model / "model.bin").write_bytes(b"other")


def extra(made: Made) -> None:
    (made.model / "more.bin").write_bytes(b"more")


def signature(made: Made) -> None:
    bundle = json.loads(made.signature)
    (signed,) = bundle["dsseEnvelope"]["signatures"]
    der = bytearray(base64.b64decode(signed["sig"]))
    der[-1] ^= 1
    signed["sig"] = base64.b64encode(der).decode("ascii")
    (made.folder / oms.NAME).write_bytes(canonical.dumps(bundle))


@pytest.mark.parametrize("alter", [weights, extra, signature])
def test_what_does_not_verify_is_not_pushed(
    hub: Hub, made: Made, alter: Callable[[Made], None]
) -> None:
    alter(made)
    done = made.push_command()
    assert done.exit_code == 1 and done.output.startswith("REFUSED")
    assert hub.asked == []


def test_the_signature_of_another_run_is_not_pushed(hub: Hub, made: Made, second: Made) -> None:
    done = made.push_command("--signature", str(second.folder / oms.NAME))
    assert done.exit_code == 1 and "oms.invalid" in done.output
    assert hub.asked == []


def test_a_software_tpm_must_be_allowed_for_a_push_too(hub: Hub, made: Made) -> None:
    command = ["hub", "push", str(made.folder / "certificate.json"), NAME, "--root"]
    done = CliRunner().invoke(main, [*command, str(made.root)])
    assert done.exit_code == 1 and "policy.assurance" in done.output
    assert hub.asked == []


def test_files_that_nobody_has_verified_are_not_pushed(hub: Hub, made: Made) -> None:
    verdict = made.verdict(files=False)
    with pytest.raises(pushing.NotCheckedError):
        pushing.push(NAME, made.data, verdict, made.model, made.signature)
    assert hub.asked == []


def test_a_file_that_changes_during_the_push_is_noticed(hub: Hub, made: Made) -> None:
    hub.before = [("/preupload/", lambda: weights(made))]
    with pytest.raises(Error) as caught:
        made.push()
    assert caught.value.code in ("hub.altered", "hub.unavailable")


def test_the_command_says_where_the_model_is(hub: Hub, made: Made) -> None:
    done = made.push_command()
    commit = hub.repositories[NAME].head
    assert done.exit_code == 0
    assert f"PUSHED  {hub.url}/{NAME}/tree/{commit}" in done.stdout
    assert f"aicert verify hf://{NAME}@{commit}" in done.stdout
    again = made.push_command("--json")
    assert json.loads(again.stdout)["new"] is False
    assert json.loads(again.stdout)["uri"] == f"hf://{NAME}@{commit}"


@pytest.mark.parametrize("script", ["README.md", "certificate.json", "MODEL.SIG"])
def test_an_output_with_the_name_of_ours(
    hub: Hub, place: Path, tmp_path: Path, script: str
) -> None:
    made = train(place, tmp_path / "made", 1, f"echo mine > /outputs/{script}")
    if script != "README.md":
        with pytest.raises(Error) as caught:
            made.push()
        assert caught.value.code in ("hub.name-taken", "manifest.collision")
        assert hub.asked == []
        return
    pushed = made.push()
    files = hub.repositories[NAME].files
    assert files["README.md"] == b"mine\n" and b"aicert verify" in files["card.md"]
    assert made.verify(pushed.uri).exit_code == 0


# -- the token -----------------------------------------------------------------------------------


def test_the_token_is_shown_to_the_hub_alone(
    hub: Hub, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pushed = made.push(private=True)
    done = made.verify(pushed.uri)
    assert done.exit_code == 0, done.output
    shown = {address.partition("/o")[0] for _, address, token in hub.asked if token}
    assert {token for _, _, token in hub.asked} == {None, f"Bearer {TOKEN}"}
    assert not [a for _, a, token in hub.asked if token and a.startswith(hub.storage)], shown
    assert TOKEN not in caplog.text and TOKEN not in done.output
    found = reading.find(pushed.uri, token=TOKEN)
    assert TOKEN not in repr((pushed, found))


def test_a_token_that_is_refused_is_not_repeated(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody")
    done = made.push_command()
    assert done.exit_code == 3 and "[hub." in done.output
    assert "hf_of-somebody" not in done.output + repr(done.exception)
    for bad in ("hf_of-somebody\nX: y", "hf_of somebody", "hf_öf-somebody"):
        monkeypatch.setenv("HF_TOKEN", bad)
        for done in (made.push_command(), made.verify(f"hf://{NAME}")):
            assert done.exit_code == 3 and "somebody" not in done.output


def test_without_a_token_nothing_is_pushed(
    hub: Hub, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    done = made.push_command()
    assert done.exit_code == 3 and "hf auth login" in done.output
    assert hub.asked == []


# -- verify --------------------------------------------------------------------------------------


def test_verified_files_are_kept_where_asked(hub: Hub, made: Made, tmp_path: Path) -> None:
    made.push()
    done = made.verify(f"hf://{NAME}", "--download", str(tmp_path / "kept"), "--json")
    assert done.exit_code == 0, done.output
    kept = Made(tmp_path, made.root)
    (tmp_path / "kept").rename(kept.model)
    assert kept.files == made.files
    said = json.loads(done.stdout)
    assert said["filesChecked"] and said["signatureChecked"]
    assert said["source"] == f"hf://{NAME}@{hub.repositories[NAME].head}"


def test_nothing_is_left_of_what_is_refused(hub: Hub, made: Made, tmp_path: Path) -> None:
    made.push()
    hub.serve = lambda path, data: data[::-1] if path == "model.bin" else data
    done = made.verify(f"hf://{NAME}", "--download", str(tmp_path / "kept"))
    assert done.exit_code == 1 and "files.altered" in done.output
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_is_there_is_not_written_into(hub: Hub, made: Made, tmp_path: Path) -> None:
    made.push()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("x")
    done = made.verify(f"hf://{NAME}", "--download", str(tmp_path / "kept"))
    assert done.exit_code == 3 and "does not exist yet" in done.output
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine"]


def changed(hub: Hub, made: Made, second: Made) -> None:
    hub.serve = lambda path, data: b"x" + data[1:] if path == "model.bin" else data


def longer(hub: Hub, made: Made, second: Made) -> None:
    hub.serve = lambda path, data: data + bytes(1 << 20) if path == "model.bin" else data


def shorter(hub: Hub, made: Made, second: Made) -> None:
    hub.serve = lambda path, data: data[:-1] if path == "model.bin" else data


def added(hub: Hub, made: Made, second: Made) -> None:
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "evil.bin": b"x"})


def removed(hub: Hub, made: Made, second: Made) -> None:
    repository = hub.repositories[NAME]
    repository.commit({k: v for k, v in repository.files.items() if k != "a/empty"})


def replaced(hub: Hub, made: Made, second: Made) -> None:
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "model.bin": second.files["model.bin"]})


def exchanged(hub: Hub, made: Made, second: Made) -> None:
    both = {"certificate.json": second.data, "model.sig": second.signature}
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, **both})


def resigned(hub: Hub, made: Made, second: Made) -> None:
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "model.sig": second.signature})


def broken(hub: Hub, made: Made, second: Made) -> None:
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "certificate.json": made.data[:-1]})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed, "files.altered"),
        (longer, "files.altered"),
        (shorter, "files.altered"),
        (added, "files.extra"),
        (removed, "files.missing"),
        (replaced, "files.altered"),
        (exchanged, "files.altered"),
        (resigned, "oms.invalid"),
        (broken, "json."),
    ],
)
def test_what_is_not_the_certified_model_is_refused(
    hub: Hub,
    made: Made,
    second: Made,
    change: Callable[[Hub, Made, Made], None],
    code: str,
) -> None:
    made.push()
    change(hub, made, second)
    done = made.verify(f"hf://{NAME}")
    assert done.exit_code == 1 and f"[{code}" in done.output, done.output


def test_a_file_beside_the_model_may_be_named_harmless(hub: Hub, made: Made, second: Made) -> None:
    made.push()
    added(hub, made, second)
    assert made.verify(f"hf://{NAME}", "--ignore", "evil.bin").exit_code == 0


def test_nothing_large_is_asked_for_before_the_certificate_verifies(hub: Hub, made: Made) -> None:
    made.push()
    del hub.asked[:]
    done = CliRunner().invoke(main, ["verify", f"hf://{NAME}", "--root", str(made.root)])
    assert done.exit_code == 1 and "policy.assurance" in done.output
    assert not [path for _, path, _ in hub.asked if "model.bin" in path]


def test_a_download_that_breaks_off_is_resumed(hub: Hub, made: Made) -> None:
    made.push()
    hub.cut = ["name=model.bin"]
    done = made.verify(f"hf://{NAME}")
    assert done.exit_code == 0, done.output
    assert len([path for _, path, _ in hub.asked if "name=model.bin" in path]) == 2


def test_a_hub_that_is_away_is_an_error_and_not_a_refusal(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.push()
    hub.failing = [("model.bin", 503)] * download.ATTEMPTS
    done = made.verify(f"hf://{NAME}")
    assert done.exit_code == 3 and "[download.failed]" in done.output
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
    assert made.verify(f"hf://{NAME}").exit_code == 3
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert made.verify(f"hf://{NAME}").exit_code == 3


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("hf://owner/none", "hub.not-found"),
        (f"hf://{NAME}@none", "hub.not-found"),
        (f"hf://{NAME}@{'0' * 40}", "hub.not-found"),
        ("hf://tiny", "hub.address"),
        ("hf://datasets/owner/tiny", "hub.address"),
        (f"hf://{NAME}?token=hf_x", "hub.address"),
        ("hf://../tiny", "hub.address"),
        ("hf://owner/bare", "hub.no-certificate"),
    ],
)
def test_what_is_not_there_says_so(hub: Hub, made: Made, source: str, code: str) -> None:
    made.push()
    hub.repository("owner/bare")
    done = made.verify(source)
    assert done.exit_code == 3 and f"[{code}]" in done.output, done.output


def test_a_hub_that_makes_no_sense_is_said_so(hub: Hub, made: Made) -> None:
    made.push()
    repository = hub.repositories[NAME]
    first = repository.commits[0][0]
    repository.commits[-1] = ("not-a-commit", repository.files)
    with pytest.raises(reading.HubError, match="no sense"):
        reading.find(f"hf://{NAME}", token=TOKEN)
    repository.commits[0] = ("f" * 40, repository.files)
    with pytest.raises(reading.NotFoundError):
        reading.find(f"hf://{NAME}@{first}", token=TOKEN)


def test_files_at_hand_are_checked_against_the_hubs_certificate(hub: Hub, made: Made) -> None:
    made.push()
    del hub.asked[:]
    assert made.verify(f"hf://{NAME}", "--model", str(made.model)).exit_code == 0
    assert not [path for _, path, _ in hub.asked if "model.bin" in path]
    weights(made)
    assert made.verify(f"hf://{NAME}", "--model", str(made.model)).exit_code == 1


def test_the_card_is_shown_from_the_hub(hub: Hub, made: Made) -> None:
    made.push()
    done = CliRunner().invoke(main, ["show", f"hf://{NAME}"])
    assert done.exit_code == 0 and "tiny" in done.stdout
