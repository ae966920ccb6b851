"""The command line: exit statuses, JSON, and messages that say what to do."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aicert import log, statement
from aicert.cli import main
from tests.support.forger import Forger, run_events

HERE = Path(__file__).parent / "conformance"
GOOD = str(HERE / "cases" / "good-ecc" / "certificate.json")
ROOTS = str(HERE / "roots.pem")


def aicert(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_verdict_exits_with_0_and_says_what_is_not_proved() -> None:
    done = aicert("verify", GOOD, "--root", ROOTS, "--allow-simulated")
    assert done.exit_code == 0
    assert done.stdout.startswith("VERIFIED  digits  assurance: simulated")
    assert "Not proved:" in done.stdout


def test_what_was_measured_is_shown_layer_by_layer() -> None:
    case = HERE / "cases" / "bootlog-good"
    options = (f"--{name}={case / file}" for name, file in (
        ("hardware-root", "hardware.pem"), ("policy", "policy.yaml"),
        ("reference", "reference.json"),
    ))  # fmt: skip
    done = aicert("verify", str(case / "certificate.json"), *options)
    assert done.exit_code == 0, done.stderr
    shown = dict(
        line.strip().split("  ", 1)
        for line in done.stdout.partition("Layer by layer:\n")[2].splitlines()
    )
    assert list(shown) == [
        "firmware", "boot", "OS image", "agent", "job", "inputs", "training", "outputs",
    ]  # fmt: skip
    assert (
        shown["firmware"] == "PCR 0 as published; PCR 1 not constrained, but explained by the log"
    )
    assert "conformance image 1.0.0 on a machine: PCRs 4, 9, 11 as published" in shown["OS image"]
    assert shown["inputs"].strip() == "2 digests in PCR 14"
    # Where the boot is not measured there is nothing to say of its layers.
    done = aicert("verify", GOOD, "--root", ROOTS, "--allow-simulated")
    assert "Layer by layer" not in done.stdout


def test_a_refusal_exits_with_1_and_says_what_to_do() -> None:
    done = aicert("verify", GOOD, "--root", ROOTS)
    assert done.exit_code == 1
    assert done.stderr.startswith("REFUSED")
    assert "what to do:" in done.stderr
    assert done.stdout == ""


def test_a_command_without_its_part_says_where_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # What verifiers install: the package alone.
    monkeypatch.setitem(sys.modules, "flows", None)
    done = aicert("run", "spec.yaml")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "runs from a checkout of aicert, after `make setup`" in done.stderr
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = aicert("hub", "push", GOOD, "owner/model", "--allow-simulated")
    assert done.exit_code == 3
    assert "in a checkout of aicert, run: pip install '.[hf]'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "no-such-file"),
        ("verify", GOOD, "--root", "no-such-root"),
        ("verify", GOOD, "--policy", "no-such-policy"),
        ("verify", GOOD, "--reference", "no-such-reference"),
        ("verify", GOOD, "--reference", GOOD),
        ("verify", GOOD, "--timestamp-root", "no-such-root"),
        ("verify", GOOD, "--vsa-key", "no-such-key"),
        ("show", "no-such-file"),
        ("hash", "no-such-folder"),
        ("trust", "--root", "no-such-root"),
    ],
)
def test_what_cannot_be_read_exits_with_3(arguments: tuple[str, ...]) -> None:
    done = aicert(*arguments)
    assert done.exit_code == 3
    assert done.stderr.startswith("ERROR")


@pytest.mark.parametrize("arguments", [("verify",), ("verify", GOOD, "--no-such"), ("no-such",)])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert aicert(*arguments).exit_code == 2


def test_json_goes_to_standard_output_whatever_the_verdict() -> None:
    for arguments, verdict, code in (
        (("--allow-simulated",), "verified", 0),
        ((), "refused", 1),
    ):
        done = aicert("verify", GOOD, "--root", ROOTS, "--json", *arguments)
        assert (json.loads(done.stdout)["verdict"], done.exit_code) == (verdict, code)


def test_the_certificate_may_lie_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    certificate = tmp_path / "certificate.json"
    certificate.write_bytes(Path(GOOD).read_bytes())
    arguments = ("--model", str(tmp_path), "--root", ROOTS, "--allow-simulated")
    assert aicert("verify", str(certificate), *arguments).exit_code == 0


def test_the_certificate_may_come_from_standard_input() -> None:
    done = CliRunner().invoke(
        main, ["verify", "-", "--root", ROOTS, "--allow-simulated"], input=Path(GOOD).read_bytes()
    )
    assert done.exit_code == 0


def test_a_policy_decides_and_names_its_rule(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: 1\nassurance: simulated\nimages: ['" + "ab" * 32 + "']\n")
    done = aicert("verify", GOOD, "--root", ROOTS, "--policy", str(policy))
    assert done.exit_code == 1
    assert "images" in done.stderr
    policy.write_text("policy: 1\nassurance: simulated\nimages: ['" + "11" * 32 + "']\n")
    assert aicert("verify", GOOD, "--root", ROOTS, "--policy", str(policy)).exit_code == 0


def test_a_policy_beside_allow_simulated_is_not_loosened(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: 1\nassurance: hardware\n")
    arguments = ("--root", ROOTS, "--policy", str(policy), "--allow-simulated")
    assert aicert("verify", GOOD, *arguments).exit_code == 1


def test_policy_check_names_a_mistake_with_its_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: 1\nasurance: hardware\n")
    done = aicert("policy", "check", str(policy))
    assert done.exit_code == 1
    assert "policy.yaml:2" in done.stderr
    assert "assurance" in done.stderr
    policy.write_text("policy: 1\nassurance: hardware\n")
    assert "hardware" in aicert("policy", "check", str(policy)).stdout


def test_the_result_can_be_written_as_an_attestation(tmp_path: Path) -> None:
    path = tmp_path / "vsa.json"
    for arguments, result in ((("--allow-simulated",), "PASSED"), ((), "FAILED")):
        aicert("verify", GOOD, "--root", ROOTS, "--vsa", str(path), *arguments)
        assert json.loads(path.read_text())["predicate"]["verificationResult"] == result


def test_show_says_that_nothing_was_verified() -> None:
    done = aicert("show", GOOD)
    assert done.exit_code == 0
    assert "Not verified" in done.stdout
    assert "Not verified" in aicert("show", GOOD, "--markdown").stdout
    assert json.loads(aicert("show", GOOD, "--json").stdout)["_type"].startswith("https://in-toto")


def test_hash_prints_what_a_spec_expects(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "a").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    assert aicert("hash", str(tmp_path / "a")).stdout.strip() == digest
    root = hashlib.sha256(bytes.fromhex(digest)).hexdigest()
    assert aicert("hash", str(tmp_path)).stdout.strip() == root
    listed = {"files": [{"path": "a", "sha256": digest, "size": 1}], "version": 1}
    assert json.loads(aicert("hash", str(tmp_path), "--json").stdout) == listed
    (tmp_path / "b").symlink_to("a")
    refused = aicert("hash", str(tmp_path), "--json")
    assert refused.exit_code == 3 and "manifest.link" in refused.stdout


def test_trust_lists_built_in_and_given_roots() -> None:
    listed = json.loads(aicert("trust", "--root", ROOTS, "--json").stdout)
    assert {pin["assurance"] for pin in listed} == {"hardware", "simulated"}
    assert any("Azure" in pin["name"] for pin in listed)


HOSTILE = "\x1b[31m\x9b1m\u202e\x07\r\u2028\nVERIFIED"


def hostile(tmp_path: Path, name: str) -> tuple[str, ...]:
    """A true certificate whose every text is hostile, or one that is refused for such a text."""
    listed = run_events()
    spec = replace(listed[0].spec, description=HOSTILE, command=(HOSTILE,), environment={"A": "1"})
    if name == "refused":
        spec = replace(spec, environment={HOSTILE: "1"})
    spec = replace(
        spec,
        image=HOSTILE,
        metrics=None,
        inputs=tuple(replace(item, uri=HOSTILE) for item in spec.inputs),
    )
    listed[0] = replace(listed[0], spec=spec, agent_version=HOSTILE)
    listed[1:3] = [
        replace(item, uri=HOSTILE, requested=HOSTILE, revision=HOSTILE) for item in listed[1:3]
    ]
    listed[3] = replace(listed[3], reference=HOSTILE)
    listed[4] = replace(
        listed[4],
        command=(HOSTILE,),
        environment={"A": "1"},
        network=HOSTILE if name == "network" else "none",
    )
    values = {"loss": HOSTILE}
    listed[5] = replace(listed[5], metrics=replace(listed[5].metrics, values=values))
    forger = Forger(events=listed)
    payload = statement.encode(log.parse_run(log.Record.of(event) for event in run_events()))
    certificate = forger.certificate(payload=payload if name == "refused" else None)
    (tmp_path / "certificate.json").write_bytes(certificate.encode())
    (tmp_path / "root.pem").write_bytes(forger.authority.root_pem)
    return str(tmp_path / "certificate.json"), "--root", str(tmp_path / "root.pem")


@pytest.mark.parametrize("name", ["verified", "refused", "network"])
def test_nothing_in_a_certificate_speaks_to_the_terminal(name: str, tmp_path: Path) -> None:
    certificate, *root = hostile(tmp_path, name)
    for command in (
        ("verify", certificate, *root, "--allow-simulated"),
        ("verify", certificate, *root, "--allow-simulated", "--json"),
        ("verify", certificate),
        ("show", certificate),
        ("show", certificate, "--markdown"),
        ("show", certificate, "--json"),
    ):
        done = aicert(*command)
        assert done.exit_code in (0, 1), command
        assert done.exception is None or isinstance(done.exception, SystemExit), command
        lines = (done.stdout + done.stderr).split("\n")
        assert all(line.isprintable() for line in lines), command
        verified = [line for line in lines if line.startswith("VERIFIED")]
        assert len(verified) == (
            name == "verified" and "--allow-simulated" in command and "--json" not in command
        )


def test_a_terminal_without_its_characters_still_shows_a_verdict(tmp_path: Path) -> None:
    certificate = hostile(tmp_path, "verified")[0]
    done = subprocess.run(
        [sys.executable, "-m", "aicert", "show", certificate],
        env={"PYTHONIOENCODING": "latin-1"},
        cwd=HERE.parents[1],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\ufffd" in done.stdout


def test_a_statement_that_is_no_json_is_shown_as_an_error() -> None:
    for name in ("statement-not-json", "form-not-utf8"):
        done = aicert("show", str(HERE / "cases" / name / "certificate.json"), "--json")
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert json.loads(done.stdout)["verdict"] == "refused"


def test_a_card_cannot_carry_markup_or_terminal_escapes() -> None:
    from aicert import words

    hostile = "\x1b[31mred\u202e <img src=x> [a](http://x) |`"
    assert "\x1b" not in words.clean(hostile)
    assert "\u202e" not in words.clean(hostile)
    shown = words.text(hostile)
    assert "<img" not in shown.replace("\\<", "")
    assert "[a](" not in shown


@pytest.mark.parametrize("command", ["compare", "check"])
def test_whatever_verifies_first_takes_reference_values(command: str, tmp_path: Path) -> None:
    """A policy that demands a measured machine can be met by every command that takes one."""
    case = HERE / "cases" / "bootlog-good"
    certificate = str(case / "certificate.json")
    proof = tmp_path / "proof.json"
    proof.write_text("{}")
    arguments = ["compare", certificate, certificate]
    if command == "check":
        arguments = ["data", "check", str(proof), certificate]
    trust = ["--policy", str(case / "policy.yaml"), "--hardware-root", str(case / "hardware.pem")]
    without = CliRunner().invoke(main, [*arguments, *trust])
    assert without.exit_code == 1
    assert "reproduction.same-run" not in without.stderr and "proof." not in without.stderr
    done = CliRunner().invoke(
        main, [*arguments, *trust, "--reference", str(case / "reference.json")]
    )
    assert done.exit_code == 1  # of what comes after the certificate is verified
    assert ("reproduction.same-run" if command == "compare" else "proof.format") in done.stderr
