"""Policies: every rule, every mistake in a file, and what the verifier does with them."""

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aicert import events, keys, log, policy, policy_file, reference, tpm2, uri_pattern
from aicert.assurance import Assurance
from aicert.log import Run
from aicert.policy import Facts, Policy, PolicyError, enforce
from aicert.policy_file import PolicyFileError
from aicert.timestamp import Stamp, TimeBounds
from aicert.trust import Pin, TrustError, TrustStore, fingerprint
from aicert.verify import to_json, verify
from tests.support.boot import Boot, digest
from tests.support.forger import FINISHED, STARTED, Forger, run_events
from tests.test_reference import by_events, document

KEY = ec.generate_private_key(ec.SECP256R1())
SIGNER = keys.fingerprint(KEY)
SIGNED = reference.sign(document(), KEY)
PIN = Pin("Some root", "ab" * 32, "hardware", "test")
NOW = FINISHED + timedelta(days=10)

CODE = "aa" * 32
DATA_ROOT = "dd" * 32


def run(**changes: Any) -> Run:
    """The forger's run, with fields of its events changed: `start={"network": "host"}`."""
    parts = log.parse_run(log.Record.of(event) for event in run_events())
    for name, fields in changes.items():
        if name == "inputs":
            parts = replace(parts, inputs=tuple(fields))
        else:
            parts = replace(parts, **{name: replace(getattr(parts, name), **fields)})
    return parts


def data_input(uri: str, **changes: Any) -> events.Input:
    """The forger's tree of data, from another place."""
    return replace(run().inputs[1], **{"uri": uri, "requested": uri, **changes})


def facts(**changes: Any) -> Facts:
    fields: dict[str, Any] = {
        "run": run(),
        "pin": PIN,
        "assurance": Assurance.HARDWARE,
        "boot": reference.check_boot(None, Boot().pcrs),
        "times": TimeBounds(
            STARTED, FINISHED, STARTED - timedelta(days=9), FINISHED + timedelta(days=300)
        ),
        "now": NOW,
    }
    return Facts(**{**fields, **changes})


def parse(text: str) -> Policy:
    return Policy.parse(f"policy: 1\n{text}", "rules.yaml")


def check(text: str, **changes: Any) -> None:
    """Hold facts against a policy; raises as the verifier would."""
    enforce(parse(text).check(facts(**changes)))


def refusal(text: str, kind: type[PolicyError], rule: str, **changes: Any) -> PolicyError:
    """The refusal, which must be of this kind and name this rule; what it says must be complete."""
    with pytest.raises(PolicyError) as caught:
        check(text, **changes)
    error = caught.value
    assert type(error) is kind
    assert error.rule == f"rules.yaml: {rule}"
    assert error.expected
    assert f"[{kind.code}]" in error.diagnostics()
    assert f"rule:     {error.rule}" in error.diagnostics()
    assert error.to_json()["rule"] == error.rule
    return error


# -- the default ---------------------------------------------------------------------------------


def test_the_default_refuses_a_software_tpm_and_says_how_to_allow_it() -> None:
    with pytest.raises(policy.AssuranceError) as caught:
        enforce(Policy.default().check(facts(assurance=Assurance.SIMULATED)))
    assert caught.value.code == "policy.assurance"
    assert "--allow-simulated" in str(caught.value.advice)
    enforce(Policy.default(Assurance.SIMULATED).check(facts(assurance=Assurance.SIMULATED)))


def test_the_default_refuses_a_training_with_a_network() -> None:
    with pytest.raises(policy.NetworkError):
        enforce(Policy.default().check(facts(run=run(start={"network": "host"}))))
    enforce(Policy.default().check(facts()))


def test_the_default_in_the_package_is_the_default_in_the_program() -> None:
    text = resources.files("aicert").joinpath("policies/default.yaml").read_text()
    parsed = Policy.parse(text, "default.yaml")
    assert parsed.rules == Policy.default().rules
    assert parsed.digest == Policy.default().digest
    assert parsed.name == Policy.default().name


def test_a_policy_that_says_nothing_of_assurance_asks_for_hardware() -> None:
    refusal("", policy.AssuranceError, "assurance", assurance=Assurance.SIMULATED)
    check("assurance: simulated", assurance=Assurance.SIMULATED)


# -- one rule after another ----------------------------------------------------------------------


def test_assurance_must_reach_the_least() -> None:
    error = refusal("assurance: measured", policy.AssuranceError, "assurance")
    assert "reference" in str(error.advice)
    error = refusal("assurance: confidential", policy.AssuranceError, "assurance")
    assert "reference values" in str(error.advice)
    found = {"assurance": Assurance.MEASURED}
    error = refusal("assurance: confidential", policy.AssuranceError, "assurance", **found)
    assert "a confidential machine" in str(error.advice)
    check("assurance: confidential", assurance=Assurance.CONFIDENTIAL)
    check("assurance: measured", assurance=Assurance.MEASURED)


def test_measured_is_refused_with_the_pcr_that_differs() -> None:
    other = Boot([*Boot().events, (9, digest("init=/bin/sh"))])
    boot = reference.check_boot(other.log, other.pcrs, [reference.parse(SIGNED)])
    error = refusal("assurance: measured", policy.AssuranceError, "assurance", boot=boot)
    assert "PCR 9" in str(error.advice)


def test_only_the_roots_named_may_vouch() -> None:
    check(f"roots: ['sha256:{PIN.fingerprint}']")
    check(f"roots: [{PIN.fingerprint}]")
    error = refusal("roots: [Google EK/AK CA Root]", policy.RootError, "roots")
    assert error.got == f"Some root (sha256:{PIN.fingerprint})"
    google = TrustStore.builtin().find(
        "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2"
    )
    assert google is not None
    check("roots: [Google EK/AK CA Root]", pin=google)


def test_a_root_with_the_name_of_a_built_in_one_is_not_it() -> None:
    impostor = replace(PIN, name="Google EK/AK CA Root")
    refusal("roots: [Google EK/AK CA Root]", policy.RootError, "roots", pin=impostor)


def test_only_the_images_named_may_train() -> None:
    check(f"images: [sha256:{'11' * 32}]")
    error = refusal(f"images: ['{'22' * 32}']", policy.ImageError, "images")
    assert "config digest" in str(error.advice)  # 22... is the image's manifest digest


def test_a_boot_must_match_reference_values_of_a_pinned_signer() -> None:
    boot = Boot()
    matched = reference.check_boot(boot.log, boot.pcrs, [reference.parse(SIGNED)])
    check(f"reference: {{signers: [{SIGNER}]}}", boot=matched)
    error = refusal(f"reference: {{signers: [{SIGNER}]}}", policy.BootError, "reference")
    assert error.got == "no reference values were given"
    error = refusal(
        f"reference: {{signers: [{'00' * 32}]}}", policy.BootError, "reference", boot=matched
    )
    assert "aicert-os 1.0.0 on qemu-2-2048, which this rule does not accept" in str(error.got)


def test_a_boot_must_match_one_of_the_documents_named() -> None:
    boot = Boot()
    known = reference.parse(SIGNED)
    matched = reference.check_boot(boot.log, boot.pcrs, [known])
    check(_documents(known.digest), boot=matched)
    refusal(_documents("00" * 32), policy.BootError, "reference", boot=matched)


def _documents(digest_: str) -> str:
    return f"reference: {{signers: [{SIGNER}], documents: [{{sha256: '{digest_}'}}]}}"


def test_the_nearest_reference_values_are_named_with_what_differs() -> None:
    other = Boot([*Boot().events, (12, digest("credential"))])
    boot = reference.check_boot(other.log, other.pcrs, [reference.parse(SIGNED)])
    error = refusal(f"reference: {{signers: [{SIGNER}]}}", policy.BootError, "reference", boot=boot)
    assert "nearest is aicert-os 1.0.0 on qemu-2-2048: PCR 12" in str(error.got)


# -- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matcher",
    [
        f"sha256: {CODE}",
        f"sha256: sha256:{CODE}",
        f"root: {'bb' * 32}",  # of the one file
        f"root: {DATA_ROOT}",
        f"root: sha256:{DATA_ROOT}",
        f"manifest: {'ee' * 32}",
        "uri: 'file:*'",
        "uri: '**'",
        f"name: code, sha256: {CODE}",
    ],
)
def test_an_input_that_is_required_and_there_passes(matcher: str) -> None:
    check(f"inputs: {{require: [{{{matcher}}}]}}")


@pytest.mark.parametrize(
    "matcher",
    [
        f"sha256: '{'00' * 32}'",
        f"manifest: {DATA_ROOT}",  # the root is not the manifest's digest
        f"sha256: {DATA_ROOT}",  # nor any file's
        f"root: {CODE}",
        "uri: https://data.example/**",
        f"name: data, sha256: {CODE}",  # of another input
        f"uri: https://data.example/**, sha256: {CODE}",  # one part is not enough
        f"gitCommit: '{'0' * 40}'",
    ],
)
def test_an_input_that_is_required_and_missing_is_refused(matcher: str) -> None:
    error = refusal(
        f"inputs: {{require: [{{sha256: {CODE}}}, {{{matcher}}}]}}",
        policy.InputMissingError,
        "inputs.require[1]",
    )
    assert error.code == "policy.inputs.require"
    assert "code: file:train.py" in str(error.got)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("require", policy.InputMissingError), ("only", policy.InputNotListedError)],
)
def test_a_tree_is_not_named_by_a_files_digest_and_the_advice_is_what_to_write(
    rule: str, kind: type[policy.PolicyError]
) -> None:
    others = "" if rule == "require" else f", {{sha256: {CODE}}}"
    where = "inputs.require[0]" if rule == "require" else "inputs.only"
    error = refusal(f"inputs: {{{rule}: [{{sha256: {DATA_ROOT}}}{others}]}}", kind, where)
    assert str(error.advice).startswith(f"write root: {DATA_ROOT}")


def test_a_file_of_digests_does_not_pass_for_the_tree_of_these_files() -> None:
    digests = [hashlib.sha256(content).digest() for content in (b"images", b"labels")]
    listed = b"".join(digests)
    root = hashlib.sha256(listed).hexdigest()
    tree = data_input("file:data", root=root)
    file = data_input("file:data", kind="file", files=1, size=64, root="ab" * 32, sha256=root)
    wanted = f"inputs: {{require: [{{root: {root}}}]}}"
    check(wanted, run=run(inputs=[tree]))
    refusal(wanted, policy.InputMissingError, "inputs.require[0]", run=run(inputs=[file]))


def test_an_input_is_found_by_its_git_commit() -> None:
    commit = "1234567890" * 4
    inputs = [data_input(f"git+https://git.example/data@{commit}", git_commit=commit)]
    check(f"inputs: {{require: [{{gitCommit: {commit}}}]}}", run=run(inputs=inputs))


@pytest.mark.parametrize(
    ("matcher", "item"),
    [
        (f"sha256: {CODE}", None),
        (f"sha256: {DATA_ROOT}", None),
        (f"root: {DATA_ROOT}", None),
        (f"root: {CODE}", None),
        (f"manifest: {'ee' * 32}", None),
        ("uri: https://bad.example/**", "https://bad.example/set"),
        ("uri: https://bad.example/**", "HTTPS://BAD.example:443/set"),
        ("uri: https://a.example/bad/**", "https://a.example/good/../bad/set"),
        ("uri: https://a.example/bad/**", "https://a.example/%62ad/set"),
        ("uri: https://a.example/bad/**", "https://a.example/good/%2E%2e/bad/set"),
        ("uri: https://a.example/bad/**", "https://a.example/good//..///../bad/set"),
        ("uri: https://a.example/bad/**", "https://a.example/good/..%2fbad/set"),
        ("uri: https://a.example/bad/**", "https://a.example/%2562ad/set"),
        ("uri: https://a.example/b%20d/**", "https://a.example/b%20d/set"),
        ("uri: https://bad.example/**", "https://bad.example./set"),
        ("uri: https://bad.example/**", "https://somebody@bad.example/set"),
        ("uri: https://bad.example/**", "https://good.example\\@bad.example/set"),
        ("uri: https://bad.example/**", "https://bad.example:/set"),
        ("uri: https://bad.example/**", "https://bad.example:0443/set"),
        ("uri: https://bad.example/**", "https://%62ad%2eexample/set"),
        ("uri: https://bad.example/**", "https://\uff42ad\u3002example/set"),
        ("uri: https://bad.example/**", "https://bad.example"),
        ("uri: https://bad.example/**", "https://bad.example?set"),
        ("uri: 'https://[::1]/**'", "https://[::1]:443/set"),
        ("uri: 'http:**'", "http://anywhere.example/set"),
        ("uri: hf://datasets/bad/**", "hf://datasets/bad/set@0123"),
    ],
)
def test_a_forbidden_input_is_found_however_its_place_is_written(
    matcher: str, item: str | None
) -> None:
    inputs = run().inputs if item is None else [data_input(item)]
    error = refusal(
        f"inputs: {{forbid: [{{{matcher}}}]}}",
        policy.InputForbiddenError,
        "inputs.forbid[0]",
        run=run(inputs=inputs),
    )
    assert error.code == "policy.inputs.forbid"


def test_a_forbidden_place_is_found_also_where_it_only_led_elsewhere() -> None:
    item = data_input("https://mirror.example/set", requested="https://bad.example/set")
    refusal(
        "inputs: {forbid: [{uri: 'https://bad.example/**'}]}",
        policy.InputForbiddenError,
        "inputs.forbid[0]",
        run=run(inputs=[item]),
    )


def test_what_is_not_forbidden_passes() -> None:
    check("inputs: {forbid: [{uri: 'https://bad.example/**'}, {sha256: '" + "00" * 32 + "'}]}")


def test_only_listed_inputs_pass_and_the_other_is_named() -> None:
    check(f"inputs: {{only: [{{sha256: {CODE}}}, {{root: {DATA_ROOT}}}]}}")
    check("inputs: {only: [{uri: 'file:**'}]}")
    error = refusal(
        f"inputs: {{only: [{{sha256: {CODE}}}]}}", policy.InputNotListedError, "inputs.only"
    )
    assert error.code == "policy.inputs.only"
    assert str(error.got).startswith("data: file:data")


def test_inputs_lie_where_the_policy_says_and_there_is_no_other() -> None:
    code, data = f"sha256: {CODE}, target: /inputs/code", f"root: {DATA_ROOT}, target: /inputs/data"
    check(f"inputs: {{require: [{{{code}}}, {{{data}}}], only: [{{{code}}}, {{{data}}}]}}")
    check(f"inputs: {{exactly: [{{{data}}}, {{{code}}}]}}")
    elsewhere = code.replace("/code", "/other")
    for rule, kind, path in (
        (f"require: [{{{elsewhere}}}]", policy.InputMissingError, "inputs.require[0]"),
        (f"only: [{{{elsewhere}}}, {{{data}}}]", policy.InputNotListedError, "inputs.only"),
        (f"exactly: [{{{elsewhere}}}, {{{data}}}]", policy.InputsDifferError, "inputs.exactly"),
        (f"exactly: [{{{code}}}]", policy.InputsDifferError, "inputs.exactly"),
        (f"exactly: [{{{code}}}, {{{data}}}, {{{elsewhere}}}]", policy.InputsDifferError,
         "inputs.exactly"),
    ):  # fmt: skip
        error = refusal(f"inputs: {{{rule}}}", kind, path)
        assert "at /inputs/" in str(error.got)
    wrong = data.replace("root", "sha256")
    error = refusal(
        f"inputs: {{exactly: [{{{code}}}, {{{wrong}}}]}}",
        policy.InputsDifferError,
        "inputs.exactly",
    )
    assert str(error.advice).startswith("write root")


def test_a_policy_says_of_a_command_what_it_leaves_open() -> None:
    command = "command: {equals: [python3, /inputs/code/train.py]}\n"
    for inputs in ("", f"inputs: {{only: [{{sha256: {CODE}, target: /inputs/code}}]}}",
                   f"inputs: {{require: [{{sha256: {CODE}}}]}}",
                   f"inputs: {{require: [{{sha256: {CODE}, target: /inputs/cod}}]}}"):  # fmt: skip
        assert "does not say what lies there" in parse(command + inputs).explain()
    for rule in ("require", "exactly"):
        inputs = f"inputs: {{{rule}: [{{sha256: {CODE}, target: /inputs/code}}]}}"
        assert "does not say what lies there" not in parse(command + inputs).explain()
    assert "lies there" not in parse("command: {starts: [python3]}").explain()


@pytest.mark.parametrize(
    "uri",
    [
        "https://good.example/../x",  # is one place here and another there: not of /sets/
        "https://good.example/sets/../secret",
        "https://good.example/sets/%2e%2e/secret",
        "https://good.example@evil.example/sets/x",
        "https://good.example.evil.example/sets/x",
        "https://good.example:8443/sets/x",
        "http://good.example/sets/x",
        "https://good.example/sets/x\\..\\..\\secret",
        "https://good.example/sets/..%2fsecret",
        "https://good.example/sets/x/..%5c..%5csecret",
        "https://good.example/sets/%252e%252e/secret",
        "https://good.example/sets/x//../../secret",
        "https://good.example/sets//..//..//secret",
        "https://somebody@good.example/sets/x",
        "https://good.example./sets/x",
        "https://good.example/sets/\t/x",
        "https://good.example/setsx",
    ],
)
def test_a_place_that_only_looks_allowed_is_not(uri: str) -> None:
    refusal(
        "inputs: {only: [{uri: 'https://good.example/sets/**'}]}",
        policy.InputNotListedError,
        "inputs.only",
        run=run(inputs=[data_input(uri)]),
    )


def test_a_place_that_is_allowed_passes() -> None:
    for uri in ("https://good.example/sets/a/b", "https://GOOD.example:443/sets/a?version=1"):
        check(
            "inputs: {only: [{uri: 'https://good.example/sets/**'}]}",
            run=run(inputs=[data_input(uri)]),
        )


@pytest.mark.parametrize(
    ("pattern", "uri", "allowed"),
    [
        ("https://a.example/*", "https://a.example/x", True),
        ("https://a.example/*", "https://a.example/x/y", False),
        ("https://a.example/*/data", "https://a.example/x/data", True),
        ("https://a.example/**/data", "https://a.example/x/y/data", True),
        ("https://*.example/x", "https://a.example/x", True),
        ("https://*.example/x", "https://b.a.example/x", False),
        ("https://*.example/x", "https://u@a.example/x", False),
        ("hf://datasets/o/n@**", "hf://datasets/o/n@abc/part", True),
        ("hf://datasets/o/n", "hf://datasets/o/n@abc", False),
        ("s3://bucket/a?b", "s3://bucket/axb", False),
        ("s3://bucket/a.b", "s3://bucket/axb", False),
        ("file:train.py", "file:train.py", True),
        ("file:**", "file:///x/y", True),
        ("FILE:x", "file:x", True),
        ("https://h.example/a%20b/**", "https://h.example/a%20b/x", True),
        ("https://h.example/sets/**", "https://h.example/sets/a%2Fb?c=%20#d", True),
        ("https://h.example/**", "https://h.example:443/a//b", True),
        ("abfss://c@a.dfs.core.windows.net/**", "abfss://c@a.dfs.core.windows.net/x", True),
        ("abfss://c@a.dfs.core.windows.net/**", "abfss://d@a.dfs.core.windows.net/x", False),
        ("git+https://h.example/**", "git+https://h.example/r.git@0123#subdirectory=x", True),
    ],
)
def test_patterns_mean_what_they_say(pattern: str, uri: str, allowed: bool) -> None:
    assert uri_pattern.parse(pattern).allows(uri) is allowed


@pytest.mark.parametrize(
    "host", ["bücher", "BÜCHER", "bu\u0308cher", "xn--bcher-kva", "XN--BCHER-KVA"]
)
@pytest.mark.parametrize(
    "pattern", ["https://bücher.example/**", "https://xn--bcher-kva.example/**"]
)
def test_a_host_is_forbidden_in_letters_and_in_ascii(host: str, pattern: str) -> None:
    assert uri_pattern.parse(pattern).forbids(f"https://{host}.example:443/x")
    assert not uri_pattern.parse(pattern).forbids("https://bucher.example/x")
    # Allowed is only what reads so in every form, as for a user's name.
    assert not uri_pattern.parse("https://bucher.example/**").allows(f"https://{host}.example/x")


def test_no_pattern_takes_long() -> None:
    """A backtracking matcher would need years for these."""
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 4000)))
    assert not uri_pattern.parse("https://h/**").forbids(f"https://{long}/x")
    for pattern in ("https://h/" + "**a" * 300, "https://h/" + "*a" * 500):
        assert not uri_pattern.parse(pattern).allows("https://h/" + "a" * 2000 + "b")


# -- training ------------------------------------------------------------------------------------


def test_a_command_must_be_one_of_those_allowed() -> None:
    check("command: {equals: [python3, /inputs/code/train.py]}")
    check("command: {starts: [python3]}")
    check("command: [{equals: [other]}, {starts: [python3, /inputs/code/train.py]}]")
    for text in ("{equals: [python3]}", "{starts: [python3, /inputs/code/other.py]}"):
        error = refusal(f"command: {text}", policy.CommandError, "command")
        assert "/inputs/code/train.py" in str(error.got)
    refusal(
        "command: {starts: [python3, /inputs/code/train.py, --safe]}",
        policy.CommandError,
        "command",
    )


def test_variables_must_be_as_demanded() -> None:
    check("environment: {require: {OMP_NUM_THREADS: 1}}")
    error = refusal(
        "environment: {require: {OMP_NUM_THREADS: 2}}",
        policy.VariableError,
        "environment.require.OMP_NUM_THREADS",
    )
    assert (error.got, error.expected) == ("1", "2")
    error = refusal(
        "environment: {require: {SEED: x}}", policy.VariableError, "environment.require.SEED"
    )
    assert error.got == "not set"


def test_variables_that_are_not_listed_are_refused() -> None:
    check("environment: {only: [OMP_NUM_THREADS]}")
    error = refusal("environment: {only: []}", policy.VariableError, "environment.only")
    assert error.got == "OMP_NUM_THREADS"
    spec = replace(run().job.spec, environment={"PYTHONPATH": "/inputs/data"})
    error = refusal(
        "environment: {only: [OMP_NUM_THREADS]}",
        policy.VariableError,
        "environment.only",
        run=run(job={"spec": spec}),
    )
    assert error.got == "PYTHONPATH"


def test_variables_of_the_image_and_of_the_agent_need_no_listing() -> None:
    """Every run has a PATH: were it listed, the spec could set it to a folder of the data."""
    given = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    check("environment: {only: [OMP_NUM_THREADS]}", run=run(start={"environment": given}))


def test_a_training_with_a_network_is_refused() -> None:
    check("network: none")
    refusal("network: none", policy.NetworkError, "network", run=run(start={"network": "bridge"}))


def test_the_agents_version_must_be_one_of_those_allowed() -> None:
    check("agentVersions: [0.1.0]")
    check("agentVersions: [9.9, 0.1.*]")
    error = refusal("agentVersions: [0.1.1, 0.2.*]", policy.AgentVersionError, "agentVersions")
    assert error.got == "0.1.0"
    refusal(
        "agentVersions: [0.1.*]",
        policy.AgentVersionError,
        "agentVersions",
        run=run(job={"agent_version": "0.10.0"}),
    )


# -- time ----------------------------------------------------------------------------------------


def times(**changes: Any) -> TimeBounds:
    return replace(facts().times, **changes)


STAMP = Stamp(FINISHED + timedelta(days=1), timedelta(seconds=1), "CN=tsa", frozenset({"ef" * 32}))


def test_a_run_must_not_be_older_than_the_maximum_age() -> None:
    check("maximumAge: 10d")
    check("maximumAge: 240h")
    check("maximumAge: 2w")
    error = refusal("maximumAge: 9d", policy.AgeError, "maximumAge")
    assert error.code == "policy.maximum-age"
    assert str(error.got).startswith("10 days")
    assert error.expected == "at most 9 days"


def test_an_earlier_timestamp_makes_a_run_older_than_it_says() -> None:
    """The machine's clock was minutes ahead, within what is no contradiction."""
    early = replace(STAMP, time=FINISHED - timedelta(minutes=3))
    error = refusal("maximumAge: 10d", policy.AgeError, "maximumAge", times=times(stamp=early))
    assert "by a timestamp" in str(error.got)
    check("maximumAge: 10d", times=times(stamp=STAMP))  # a later one does not make it younger


def test_a_run_that_ended_in_the_future_is_refused() -> None:
    error = refusal(
        "maximumAge: 10d", policy.AgeError, "maximumAge", now=FINISHED - timedelta(hours=1)
    )
    assert "in the future" in error.message
    check("maximumAge: 10d", now=FINISHED - timedelta(minutes=1))  # clocks differ a little


def test_without_a_maximum_age_a_certificate_stays_good() -> None:
    check("", now=NOW + timedelta(days=36500))


def test_a_timestamp_can_be_required() -> None:
    rule = "timestamp: {require: true}"
    error = refusal(rule, policy.TimestampRequiredError, "timestamp")
    assert error.got == "none"
    error = refusal(
        rule, policy.TimestampRequiredError, "timestamp", times=times(unchecked_stamp=True)
    )
    assert error.got == "one that was not checked"
    assert "--timestamp-root" in str(error.advice)
    check(rule, times=times(stamp=STAMP))


def test_a_timestamp_after_the_keys_chain_has_ended_does_not_count() -> None:
    late = times(stamp=STAMP, key_not_after=FINISHED + timedelta(hours=1))
    error = refusal(
        "timestamp: {require: true}", policy.TimestampRequiredError, "timestamp", times=late
    )
    assert "younger" in error.message


def test_a_timestamp_by_another_partys_authority_does_not_count() -> None:
    """In a composition each part keeps its own idea of whom to believe."""
    rule = policy.RequiredTimestamp("timestamp", ("01" * 32,))
    error = rule.problem(facts(times=times(stamp=STAMP)))
    assert isinstance(error, policy.TimestampRequiredError)
    assert (
        policy.RequiredTimestamp("t", ("ef" * 32,)).problem(facts(times=times(stamp=STAMP))) is None
    )


# -- outcome -------------------------------------------------------------------------------------


def test_the_first_failure_is_raised_and_carries_all_the_others() -> None:
    error = refusal(
        "network: none\nmaximumAge: 1d\nagentVersions: [9.*]\nimages: ['" + "00" * 32 + "']",
        policy.ImageError,
        "images",
    )
    failed = [result.rule for result in error.failures]
    assert failed == ["rules.yaml: images", "rules.yaml: maximumAge", "rules.yaml: agentVersions"]
    assert len(error.results) == 5
    assert "also failed: rules.yaml: maximumAge: the run is older" in error.diagnostics()
    assert error.to_json()["alsoFailed"] == "rules.yaml: maximumAge; rules.yaml: agentVersions"


def test_a_hostile_uri_is_shown_harmless() -> None:
    inputs = [data_input("https://x.example/\x1b[2J\n" + "y" * 3000)]
    error = refusal(
        f"inputs: {{require: [{{sha256: {CODE}}}]}}",
        policy.InputMissingError,
        "inputs.require[0]",
        run=run(inputs=inputs),
    )
    assert "\x1b" not in error.diagnostics()
    assert len(error.diagnostics()) < 1500


# -- composition ---------------------------------------------------------------------------------


def test_all_of_passes_only_where_each_part_does() -> None:
    loose, tight = parse("assurance: simulated"), parse("network: none")
    both = Policy.all_of([loose, tight])
    enforce(both.check(facts()))
    with pytest.raises(policy.AssuranceError):
        enforce(both.check(facts(assurance=Assurance.SIMULATED)))
    assert Policy.all_of([tight]) is tight


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / f"{next(iter(files)).replace('__', '/')}.yaml"


def test_a_policy_that_extends_another_can_only_tighten_it(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        mine="policy: 1\nassurance: simulated\nextends: [base/company.yaml]",
        base__company="policy: 1\nmaximumAge: 5d\nextends: [../root.yaml]",
        root="policy: 1\nnetwork: none\nassurance: simulated",
    )
    loaded = Policy.load(path)
    assert [part.name for part in loaded.every()] == ["mine", "company", "root"]
    with pytest.raises(policy.AgeError) as caught:
        enforce(loaded.check(facts()))
    assert caught.value.rule == f"{tmp_path}/base/company.yaml: maximumAge"
    # company.yaml says nothing of assurance, so it asks for hardware; mine.yaml cannot undo that.
    with pytest.raises(policy.AssuranceError):
        enforce(loaded.check(facts(assurance=Assurance.SIMULATED)))


def test_a_policy_may_be_extended_along_two_ways(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        top="policy: 1\nextends: [left.yaml, right.yaml]",
        left="policy: 1\nextends: [base.yaml]",
        right="policy: 1\nextends: [base.yaml]",
        base="policy: 1\nnetwork: none",
    )
    enforce(Policy.load(path).check(facts()))


@pytest.mark.parametrize(
    "files",
    [{"one": "extends: [one.yaml]"}, {"one": "extends: [two.yaml]", "two": "extends: [one.yaml]"}],
)
def test_policies_that_extend_each_other_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    path = put(tmp_path, **{name: f"policy: 1\n{text}" for name, text in files.items()})
    with pytest.raises(PolicyFileError, match="goes in a circle"):
        Policy.load(path)


def test_a_circle_through_a_link_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, one="policy: 1\nextends: [link.yaml]")
    (tmp_path / "link.yaml").symlink_to("one.yaml")
    with pytest.raises(PolicyFileError, match="goes in a circle"):
        Policy.load(path)


def test_policies_that_extend_too_deep_are_refused(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path, **{f"p{number}": f"policy: 1\nextends: [p{number + 1}.yaml]"})
    put(tmp_path, p20="policy: 1")
    with pytest.raises(PolicyFileError, match="goes too deep"):
        Policy.load(tmp_path / "p0.yaml")


def test_policies_of_too_many_files_are_refused(tmp_path: Path) -> None:
    for number in range(100):
        put(tmp_path, **{f"p{number}": "policy: 1"})
    names = ", ".join(f"p{number}.yaml" for number in range(100))
    path = put(tmp_path, top=f"policy: 1\nextends: [{names}]")
    with pytest.raises(PolicyFileError, match="too far"):
        Policy.load(path)


# -- mistakes ------------------------------------------------------------------------------------


def mistakes(text: str) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        Policy.parse(text, "rules.yaml")
    assert caught.value.code == "policy.file"
    return [str(mistake) for mistake in caught.value.mistakes]


ONE_MISTAKE = [
    ("", "rules.yaml: is empty, not a mapping. Begin with policy: 1"),
    ("[]", "rules.yaml:1:1: is a list, not a mapping. Begin with policy: 1"),
    ("name: x", "rules.yaml:1:1: lacks the field policy. Write policy: 1"),
    ("policy: 2", "rules.yaml:1:9: policy: is version 2, which this aicert does not know. "
     "Write policy: 1"),
    ("policy: '1'", "rules.yaml:1:9: policy: is version '1', which this aicert does not know. "
     "Write policy: 1"),
    ("policy: true", "rules.yaml:1:9: policy: is version True, which this aicert does not know. "
     "Write policy: 1"),
    ("policy: 1\nasurance: hardware", "rules.yaml:2:1: asurance: is not a field that is known "
     "here. Did you mean assurance?"),
    ("policy: 1\nassurance: hardwear", "rules.yaml:2:12: assurance: is 'hardwear', no assurance. "
     "Did you mean hardware?"),
    ("policy: 1\nassurance: [hardware]", "rules.yaml:2:12: assurance: is a list, no assurance. "
     "Known are: simulated, hardware, measured, confidential"),
    ("policy: 1\nnetwork: none\nnetwork: none", "rules.yaml:3:1: network: stands twice; the first "
     "is on line 2. Remove one of the two"),
    ("policy: 1\nname: &a x", "rules.yaml:2:7: name: uses an anchor or alias (& or *). Write it "
     "out, or put the text in quotes"),
    ("policy: 1\nname: !!str x", "rules.yaml:2:7: name: has a tag ('tag:yaml.org,2002:str'). "
     "Remove the tag"),
    ("policy: 1\nname:", "rules.yaml:2:6: name: is empty, not a text. Put it in quotes"),
    ("policy: 1\nimages: x", "rules.yaml:2:9: images: is 'x', not a list. Write each item on a "
     "line after -"),
    ("policy: 1\nimages: []", "rules.yaml:2:9: images: is an empty list. Name at least one, or "
     "leave the field out"),
    ("policy: 1\nimages: [sha256:AB" + "cd" * 31 + "]", "rules.yaml:2:10: images[0]: is "
     "'sha256:AB" + "cd" * 31 + "', no SHA-256 digest. Write it in lower case"),
    ("policy: 1\nimages: [abcd]", "rules.yaml:2:10: images[0]: is 'abcd', no SHA-256 digest. It "
     "has 4 hex digits and needs 64"),
    ("policy: 1\nimages: [r/i@sha256:" + "0" * 64 + "]", None),
    ("policy: 1\nroots: [Gogle EK/AK CA Root]", "rules.yaml:2:9: roots[0]: is 'Gogle EK/AK CA "
     "Root', neither a fingerprint (sha256:...) nor a built-in root. Did you mean Google EK/AK CA "
     "Root?"),
    ("policy: 1\ninputs: {}", "rules.yaml:2:9: inputs: is empty. Leave the field out"),
    ("policy: 1\ninputs: {requires: []}", "rules.yaml:2:10: inputs.requires: is not a field that "
     "is known here. Did you mean require?"),
    ("policy: 1\ninputs: {require: [https://x/**]}", "rules.yaml:2:20: inputs.require[0]: is a "
     "text; an input is described by uri, sha256, root, manifest or gitCommit. Write uri: "
     "https://x/**"),
    ("policy: 1\ninputs: {require: [{name: data}]}", "rules.yaml:2:20: inputs.require[0]: says "
     "nothing of where the input is from or what is in it. Give uri, sha256, root, manifest or "
     "gitCommit; names are the builder's"),
    ("policy: 1\ninputs: {forbid: [{name: data, uri: '**'}]}", "rules.yaml:2:20: "
     "inputs.forbid[0].name: is not a field that is known here. Known are: uri, sha256, root, "
     "manifest, gitCommit"),
    (f"policy: 1\ninputs: {{exactly: [{{sha256: {CODE}}}]}}", "rules.yaml:2:20: inputs.exactly[0]: "
     "lacks a target. Say where it lies, such as /inputs/data"),
    (f"policy: 1\ninputs: {{require: [{{sha256: {CODE}, target: /usr}}]}}", None),
    (f"policy: 1\ninputs: {{require: [{{sha256: {CODE}, target: /inputs/a/}}]}}", None),
    (f"policy: 1\ninputs: {{require: [{{sha256: {CODE}, target: /inputs/a/../b}}]}}", None),
    (f"policy: 1\ninputs: {{exactly: [{{sha256: {CODE}, target: /inputs/a}}, "
     f"{{sha256: {CODE}, target: /inputs/a}}]}}", None),
    ("policy: 1\ninputs: {only: [{uri: x.example/**}]}", "rules.yaml:2:23: inputs.only[0].uri: is "
     "'x.example/**', no pattern over URIs: it does not begin with a scheme, such as https:, hf: "
     "or file:. For example https://data.example/sets/**"),
    ("policy: 1\ninputs: {only: [{uri: 'https://**.x/'}]}", "rules.yaml:2:23: inputs.only[0].uri: "
     "is 'https://**.x/', no pattern over URIs: it has ** in its host, where * stands for one "
     "label of a name. For example https://data.example/sets/**"),
    ("policy: 1\ninputs: {only: [{uri: 'https://x/ y'}]}", None),
    ("policy: 1\ninputs: {only: [{gitCommit: 1234567}]}", "rules.yaml:2:29: "
     "inputs.only[0].gitCommit: is '1234567', not a full git commit"),
    ("policy: 1\ncommand: [python, train.py]", "rules.yaml:2:10: command: is a list of words; say "
     "whether the command equals them or starts with them. Write equals: [python, train.py]"),
    ("policy: 1\ncommand: {equals: [a], starts: [a]}", "rules.yaml:2:10: command: needs either "
     "equals or starts"),
    ("policy: 1\ncommand: {equals: [a, [b]]}", "rules.yaml:2:23: command.equals[1]: is a list, "
     "not a text. Put it in quotes"),
    ("policy: 1\nenvironment: {require: {A-B: x}}", "rules.yaml:2:25: environment.require.A-B: is "
     "not the name of a variable"),
    ("policy: 1\nenvironment: {only: [A=1]}", "rules.yaml:2:22: environment.only[0]: is 'A=1', "
     "not the name of a variable"),
    ("policy: 1\nnetwork: host", "rules.yaml:2:10: network: is 'host'. Write network: none, or "
     "leave the field out"),
    ("policy: 1\nmaximumAge: 90", "rules.yaml:2:13: maximumAge: is '90', no length of time. For "
     "example 90d, 12h or 4w"),
    ("policy: 1\nmaximumAge: 0d", "rules.yaml:2:13: maximumAge: is '0d', no length of time. For "
     "example 90d, 12h or 4w"),
    ("policy: 1\nagentVersions: ['*']", "rules.yaml:2:17: agentVersions[0]: is '*', no version. "
     "For example 0.2.1 or 0.2.*"),
    ("policy: 1\nevaluations: []", "rules.yaml:2:14: evaluations: is an empty list. Name at least "
     "one, or leave the field out"),
    ("policy: 1\nevaluations:\n- {command: {equals: [a]}, metrics: {a: {atLeast: 1}}}",
     "rules.yaml:3:3: evaluations[0]: leaves inputs.exactly and images and environment.only to the "
     "builder, who could report any metrics. Say which benchmark: image, command, each input's "
     "target"),
    (f"policy: 1\nevaluations:\n- images: [{CODE}]\n  command: {{equals: [a]}}\n"
     f"  environment: {{only: []}}\n"
     f"  inputs: {{exactly: [{{sha256: {CODE}, target: /inputs/a}}]}}\n"
     "  metrics: {a: {atLeast: high}}",
     "rules.yaml:7:26: evaluations[0].metrics.a.atLeast: is 'high', not a number"),
    ("policy: 1\ntimestamp: {require: yes}", "rules.yaml:2:22: timestamp.require: is 'yes'. Write "
     "true or false"),
    ("policy: 1\ntimestamp: {authorities: [root.pem]}", "rules.yaml:2:27: "
     "timestamp.authorities[0]: names a file, and this policy was not read from one"),
    ("policy: 1\nextends: [x.yaml]", "rules.yaml:2:11: extends[0]: names a file, and this policy "
     "was not read from one"),
    ("policy: 1\nreference: {documents: [{sha256: " + "a" * 64 + "}]}", "rules.yaml:2:12: "
     "reference: lacks the field signers"),
    ("policy: 1\nreference: {signers: [" + "a" * 64 + "], documents: [{}]}", None),
    ("policy: 1\ntrust: [{file: x.pem, assurance: measured}]", "rules.yaml:2:34: "
     "trust[0].assurance: is 'measured'; a root is worth simulated or hardware. More than that, "
     "only reference values show"),
    ("policy: 1\ntrust: [{file: x.pem}]", "rules.yaml:2:9: trust[0]: lacks the field assurance"),
    ("policy: 1\n---\npolicy: 1", "rules.yaml:2:1: has more than one document. Remove '---'"),
    ("policy: 1\nname: [", None),
    ("policy: 1\n\tname: x", None),
    ("policy: 1\n? [a]\n: b", "rules.yaml:2:3: has a key that is not a text"),
    ("policy: 1\nname: " + "[" * 20 + "]" * 20, None),
    ("policy: 1\nname: \x07", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ONE_MISTAKE)
def test_a_mistake_is_named_with_its_place_and_what_to_do(text: str, expected: str | None) -> None:
    found = mistakes(text)
    assert len(found) == 1, found
    assert found[0].startswith("rules.yaml:")
    assert expected is None or found[0] == expected


def test_every_mistake_is_named_at_once_in_the_order_of_the_text() -> None:
    found = mistakes(
        "policy: 1\nnetwork: host\nimages:\n  - abc\n  - def\nmaximumAge: soon\n"
        "inputs:\n  require:\n    - {sha256: 12}\n    - {uri: x}\n"
    )
    lines = [int(mistake.split(":")[1]) for mistake in found]
    assert lines == [2, 4, 5, 6, 9, 10]


def test_mistakes_cross_processes_whole() -> None:
    with pytest.raises(PolicyFileError) as caught:
        Policy.parse("policy: 3", "rules.yaml")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.mistakes == caught.value.mistakes
    assert copy.diagnostics() == caught.value.diagnostics()
    assert "rules.yaml: 1 mistake in the policy  [policy.file]" in copy.diagnostics()


def test_a_policy_beyond_the_limits_is_refused() -> None:
    assert "too large" in mistakes("policy: 1\n#" + "x" * policy_file.MAX_BYTES)[0]
    many = ", ".join(["a" * 64] * (policy_file.MAX_ITEMS + 1))
    assert "over 1000 items" in mistakes(f"policy: 1\nimages: [{many}]")[0]


def test_aliases_cannot_make_a_small_text_large() -> None:
    bomb = "policy: 1\na: &a [x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    assert any("anchor or alias" in mistake for mistake in mistakes(bomb))


def test_yaml_words_are_not_guessed_into_other_types() -> None:
    """`no`, `1.10`, dates and octal numbers stay the texts that were written."""
    parsed = parse(
        "agentVersions: [1.10, 0123]\ncommand: {equals: [no, on, 2026-01-01, 0x10, 1e3]}"
    )
    (command,) = [rule for rule in parsed.rules if isinstance(rule, policy.AllowedCommands)]
    assert command.patterns[0].words == ("no", "on", "2026-01-01", "0x10", "1e3")
    (versions,) = [rule for rule in parsed.rules if isinstance(rule, policy.AgentVersions)]
    assert versions.versions == ("1.10", "0123")


def test_json_is_read_with_places_too() -> None:
    text = '{"policy": 1,\n "network": "none",\n "maximumAge": "9d"}'
    assert Policy.parse(text, "rules.json").digest == parse("network: none\nmaximumAge: 9d").digest
    for text, expected in (
        ('{"policy": 1,\n "netwrk": "none"}', "rules.yaml:2:2: netwrk: is not a field that is "
         "known here. Did you mean network?"),
        ('{"policy": 1,\n "images": [1]}', "rules.yaml:2:13: images[0]: is 1, no SHA-256 digest. "
         "Write its 64 hex digits, with or without sha256: before them"),
        ('{"policy": 1, "policy": 1}', "rules.yaml:1:15: policy: stands twice; the first is on "
         "line 1. Remove one of the two"),
        ('{"policy": 1.0}', "rules.yaml:1:12: policy: is version 1.0, which this aicert does not "
         "know. Write policy: 1"),
        ('{"policy": 1,}', "rules.yaml:1:14: is not JSON: a comma stands before the end. Remove "
         "the comma"),
    ):  # fmt: skip
        assert mistakes(text) == [expected]


def test_json_needs_no_yaml_library_and_yaml_says_that_it_does() -> None:
    program = """
import sys
sys.modules["yaml"] = None
from aicert.policy import Policy
assert Policy.parse('{"policy": 1}').rules
try:
    Policy.parse("policy: 1")
except Exception as error:
    print(error.diagnostics())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "is YAML, and PyYAML is not installed" in done.stdout


def test_verifying_under_the_default_policy_imports_no_yaml_and_no_timestamps() -> None:
    program = """
import sys, aicert.verify
from aicert.policy import Policy
Policy.default().explain()
print([name for name in ("yaml", "rfc3161_client", "aicert.policy_file") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- files that a policy names -------------------------------------------------------------------


def test_a_policy_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="cannot be read: No such file"):
        Policy.load(tmp_path / "none.yaml")
    with pytest.raises(PolicyFileError, match="cannot be read"):
        Policy.load(tmp_path)
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"policy: 1\nname: \xff")
    with pytest.raises(PolicyFileError, match="is not UTF-8: invalid start byte at byte 16"):
        Policy.load(path)


def test_mistakes_in_an_extended_policy_are_named_in_its_own_file(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        top="policy: 1\nextends: [base.yaml]\nnetwork: host",
        base="policy: 1\nnetwork: hots",
    )
    with pytest.raises(PolicyFileError) as caught:
        Policy.load(path)
    text = [str(mistake) for mistake in caught.value.mistakes]
    assert text[0].startswith(f"{tmp_path}/top.yaml:2:11: extends[0]: names a policy that cannot")
    assert text[1].startswith(f"{tmp_path}/top.yaml:3:10: network")
    assert text[2].startswith(f"{tmp_path}/base.yaml:2:10: network: is 'hots'")


@pytest.mark.parametrize("name", ["/etc/policy.yaml", '"a\\0b"'])
def test_files_are_named_relative_to_the_policy(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, top=f"policy: 1\nextends: [{name}]")
    with pytest.raises(PolicyFileError, match="relative to the policy's file"):
        Policy.load(path)


def root_file(folder: Path, forger: Forger) -> Path:
    path = folder / "root.pem"
    path.write_bytes(forger.authority.root_pem)
    return path


def test_a_policy_brings_its_own_roots_with_their_worth(tmp_path: Path) -> None:
    forger = Forger()
    root_file(tmp_path, forger)
    path = put(tmp_path, top="policy: 1\ntrust: [{file: root.pem, assurance: hardware}]")
    loaded = Policy.load(path)
    verdict = verify(forger.certificate().encode(), trust=TrustStore(), policy=loaded)
    assert verdict.assurance is Assurance.HARDWARE
    assert verdict.chain.pin.source == f"{tmp_path}/root.pem"
    with pytest.raises(TrustError, match="different worth"):
        verify(
            forger.certificate().encode(),
            trust=TrustStore().with_roots(tmp_path / "root.pem", "simulated"),
            policy=loaded,
        )


def test_a_root_of_a_policy_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("no certificate")
    path = put(tmp_path, top="policy: 1\ntrust: [{file: root.pem, assurance: hardware}]")
    with pytest.raises(PolicyFileError, match=r"trust\[0\].file: names a file that cannot be used"):
        Policy.load(path)


def test_a_policy_brings_its_own_reference_values(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_bytes(SIGNED)
    text = f"policy: 1\nreference: {{signers: [{SIGNER}], documents: [{{file: image.json}}]}}"
    loaded = Policy.load(put(tmp_path, top=text))
    (document_,) = loaded.references()
    assert document_.values == document()
    boot = Boot()
    matched = reference.check_boot(boot.log, boot.pcrs, [document_])
    enforce(loaded.check(facts(boot=matched)))


@pytest.mark.parametrize(
    ("content", "signer", "message"),
    [
        (SIGNED, "00" * 32, "were signed by a key that is not pinned"),
        (SIGNED[:-1], SIGNER, "is not JSON"),
        (b"", SIGNER, "cannot be used"),
        (None, SIGNER, "names a file that cannot be read: No such file"),
        (b" " * (reference.MAX_BYTES + 1), SIGNER, "names a file that is too large"),
    ],
    ids=["signer", "cut", "empty", "missing", "large"],
)
def test_reference_values_that_cannot_be_used_are_a_mistake(
    tmp_path: Path, content: bytes | None, signer: str, message: str
) -> None:
    if content is not None:
        (tmp_path / "image.json").write_bytes(content)
    text = f"policy: 1\nreference: {{signers: ['{signer}'], documents: [{{file: image.json}}]}}"
    with pytest.raises(PolicyFileError, match=message) as caught:
        Policy.load(put(tmp_path, top=text))
    assert caught.value.mistakes[0].path == "reference.documents[0].file"


def test_reference_values_given_besides_need_a_pinned_signer() -> None:
    pinned = parse(f"reference: {{signers: [{SIGNER}]}}")
    assert pinned.references([SIGNED])[0].signer == SIGNER
    other = reference.sign(document(), ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(reference.ReferenceSignerError):
        pinned.references([SIGNED, other])
    with pytest.raises(reference.ReferenceSignerError, match="not pinned"):
        Policy.default().references([SIGNED])


def test_one_partys_reference_values_do_not_satisfy_anothers_rule() -> None:
    """Documents of both count as matches; each rule still wants its own."""
    other = ec.generate_private_key(ec.SECP256R1())
    mine = parse(f"reference: {{signers: [{SIGNER}]}}")
    theirs = parse(f"reference: {{signers: ['{keys.fingerprint(other)}']}}")
    boot = Boot()
    both = Policy.all_of([mine, theirs])
    known = both.references([SIGNED, reference.sign(document(version="2"), other)])
    enforce(both.check(facts(boot=reference.check_boot(boot.log, boot.pcrs, known))))
    only_mine = both.references([SIGNED])
    with pytest.raises(policy.BootError):
        enforce(both.check(facts(boot=reference.check_boot(boot.log, boot.pcrs, only_mine))))


def test_a_policy_brings_its_own_timestamp_authorities(tmp_path: Path) -> None:
    forger = Forger()
    root_file(tmp_path, forger)
    path = put(tmp_path, top="policy: 1\ntimestamp: {authorities: [root.pem]}")
    loaded = Policy.load(path)
    assert loaded.timestamp_roots() == (forger.authority.root,)
    assert loaded.timestamp_roots([forger.authority.root]) == (forger.authority.root,)
    (rule,) = [r for r in loaded.rules if isinstance(r, policy.RequiredTimestamp)]
    assert rule.authorities == (fingerprint(forger.authority.root),)
    optional = put(
        tmp_path, optional="policy: 1\ntimestamp: {authorities: [root.pem], require: false}"
    )
    assert not any(isinstance(r, policy.RequiredTimestamp) for r in Policy.load(optional).rules)


# -- the digest and the explanation --------------------------------------------------------------


def test_the_digest_is_that_of_the_demands_and_of_nothing_else() -> None:
    base = parse("network: none\nmaximumAge: 9d")
    assert base.digest == Policy.parse("name: x\nmaximumAge: 9d\npolicy: 1\nnetwork: none").digest
    assert base.digest != parse("maximumAge: 9d").digest
    assert base.digest != parse("network: none\nmaximumAge: 8d").digest
    assert base.digest != Policy.all_of([base, base]).digest


@pytest.mark.parametrize(
    "text",
    [
        f"roots: [{'0a' * 32}]",
        f"images: [{'0a' * 32}]",
        f"reference: {{signers: [{'0a' * 32}]}}",
        f"inputs: {{require: [{{sha256: {'0a' * 32}}}]}}",
        f"inputs: {{forbid: [{{sha256: {'0a' * 32}}}]}}",
        f"inputs: {{only: [{{sha256: {'0a' * 32}}}]}}",
        f"inputs: {{exactly: [{{sha256: {'0a' * 32}, target: /inputs/a}}]}}",
        "command: {equals: [a]}",
        "command: {starts: [a]}",
        "environment: {require: {A: b}}",
        "environment: {only: [A]}",
        "agentVersions: [1]",
        "timestamp: {require: true}",
        "assurance: measured",
    ],
)
def test_every_rule_is_in_the_digest_and_in_the_explanation(text: str) -> None:
    made = parse(text)
    assert made.digest != parse("").digest
    key = text.partition(":")[0]
    assert f"[{key}" in made.explain()
    json.dumps(made.to_json())


def test_the_explanation_says_what_is_left_open_and_what_can_never_pass() -> None:
    text = parse("description: For   the\n  tests.").explain()
    assert text.startswith("rules (rules.yaml)\n  For the tests.\n  demands: assurance at least")
    assert "Left open: roots: any that the trust store has; container images" in text
    assert "no certificate can be measured" in parse("assurance: measured").explain()
    assert "can be confidential" in parse("assurance: confidential").explain()
    assert "can be" not in parse(f"{MEASURED}").explain()
    closed = parse(
        f"roots: [{'0a' * 32}]\nimages: [{'0a' * 32}]\nreference: {{signers: [{'0a' * 32}]}}\n"
        f"inputs: {{only: [{{sha256: {'0a' * 32}}}]}}\ncommand: {{equals: [a]}}\n"
        "environment: {only: []}\nmaximumAge: 9d"
    )
    assert "Left open" not in closed.explain()


# -- the verifier --------------------------------------------------------------------------------


def trusting(forger: Forger, worth: Any = "hardware") -> TrustStore:
    pin = Pin("forger root", fingerprint(forger.authority.root), worth, "test")
    return TrustStore().with_pins([pin])


def test_the_verifier_applies_the_policy_and_shows_each_rule() -> None:
    forger = Forger()
    demanded = parse("network: none\ncommand: {starts: [python3]}")
    verdict = verify(forger.certificate().encode(), trust=trusting(forger), policy=demanded)
    shown = to_json(verdict)["policy"]
    assert shown["name"] == "rules"
    assert shown["sha256"] == demanded.digest
    assert [rule["rule"] for rule in shown["rules"]] == [
        "rules.yaml: assurance",
        "rules.yaml: command",
        "rules.yaml: network",
    ]


def test_the_verifier_refuses_what_the_policy_refuses() -> None:
    forger = Forger()
    with pytest.raises(policy.AgeError) as caught:
        verify(
            forger.certificate().encode(),
            trust=trusting(forger),
            policy=parse("maximumAge: 9d"),
            now=NOW,
        )
    assert caught.value.rule == "rules.yaml: maximumAge"
    verify(
        forger.certificate().encode(),
        trust=trusting(forger),
        policy=parse("maximumAge: 10d"),
        now=NOW,
    )


def test_age_is_counted_to_this_machines_clock_where_no_time_is_given() -> None:
    forger = Forger()
    days = (datetime.now(UTC) - FINISHED).days
    if days > 0:
        with pytest.raises(policy.AgeError):
            verify(
                forger.certificate().encode(),
                trust=trusting(forger),
                policy=parse(f"maximumAge: {days}d"),
            )
        verify(
            forger.certificate().encode(),
            trust=trusting(forger),
            policy=parse(f"maximumAge: {days + 1}d"),
        )


def test_a_least_assurance_besides_a_policy_only_tightens() -> None:
    forger = Forger()
    data, trust = forger.certificate().encode(), trusting(forger, "simulated")
    loose = parse("assurance: simulated")
    assert verify(data, trust=trust, policy=loose).assurance is Assurance.SIMULATED
    with pytest.raises(policy.AssuranceError):
        verify(data, trust=trust, policy=loose, least=Assurance.HARDWARE)
    with pytest.raises(policy.AssuranceError):
        verify(data, trust=trust, policy=parse(""), least=Assurance.SIMULATED)


def booted_forger(boot: Boot) -> Forger:
    return Forger(start=boot.pcrs)


def measured(boot: Boot, text: str, worth: Any = "hardware", **options: Any) -> Any:
    forger = booted_forger(boot)
    certificate = forger.certificate(boot_event_log=options.pop("boot_event_log", boot.log))
    return verify(
        certificate.encode(), trust=trusting(forger, worth), policy=parse(text), **options
    )


MEASURED = f"assurance: measured\nreference: {{signers: [{SIGNER}]}}"


def test_a_measured_boot_raises_the_assurance_and_names_the_image() -> None:
    verdict = measured(Boot(), MEASURED, references=[SIGNED])
    assert verdict.assurance is Assurance.MEASURED
    assert "the machine booted aicert-os 1.0.0 on qemu-2-2048" in verdict.proved
    assert not any("operating system was not checked" in line for line in verdict.not_proved)
    shown = to_json(verdict)["boot"]
    assert shown["measured"]
    assert shown["pcrs"]["9"] == ["value", "has the image's value"]


@pytest.mark.parametrize("handle", [tpm2.TPM_RH_ENDORSEMENT, tpm2.TPM_RH_PLATFORM, 0x40000001])
def test_that_it_was_one_boot_is_not_proved_of_a_clouds_key_unless_the_boot_is_measured(
    handle: int,
) -> None:
    """Of a key that comes back after TPM2_Clear; one of the owner's hierarchy does not."""
    boot = Boot()
    forger = Forger(start=boot.pcrs)
    name = b"\x00\x0b" + hashlib.sha256(handle.to_bytes(4, "big") + forger.name).digest()
    signer = {"qualified_signer": name}
    certificate = forger.certificate(baseline=signer, final=signer, boot_event_log=boot.log)
    for text, references in (("", []), (MEASURED, [SIGNED])):
        verdict = verify(
            certificate.encode(),
            trust=trusting(forger),
            policy=parse(text),
            references=references,
        )
        fragile = handle != 0x40000001 and not references
        assert any("TPM2_Clear" in line for line in verdict.not_proved) is fragile
        assert any("one unbroken boot" in line for line in verdict.proved) is not fragile


def test_a_time_without_a_zone_is_the_callers_mistake() -> None:
    forger = Forger()
    with pytest.raises(ValueError, match="zone"):
        verify(forger.certificate().encode(), trust=trusting(forger), now=NOW.replace(tzinfo=None))


def test_that_nothing_was_revoked_is_not_proved_of_a_real_tpms_key() -> None:
    verdict = measured(Boot(), MEASURED, references=[SIGNED])
    assert any("revoked" in line for line in verdict.not_proved)


def test_a_measured_boot_says_which_pcrs_are_left_open() -> None:
    loose = reference.sign(by_events(), KEY)
    verdict = measured(Boot(), MEASURED, references=[loose])
    assert any("PCRs [0, 1]" in line for line in verdict.not_proved)


def test_a_measured_boot_under_a_software_root_stays_simulated() -> None:
    """Whoever runs a software TPM can put anything into its PCRs."""
    text = f"assurance: simulated\nreference: {{signers: [{SIGNER}]}}"
    verdict = measured(Boot(), text, "simulated", references=[SIGNED])
    assert verdict.assurance is Assurance.SIMULATED
    with pytest.raises(policy.AssuranceError):
        measured(Boot(), MEASURED, "simulated", references=[SIGNED])


def test_another_boot_is_hardware_at_most() -> None:
    other = Boot([*Boot().events, (9, digest("init=/bin/sh"))])
    with pytest.raises(policy.AssuranceError) as caught:
        measured(other, MEASURED, references=[SIGNED])
    assert "PCR 9" in str(caught.value.advice)
    # Without a demand the certificate is still good, and worth what it is.
    plain = measured(other, "")
    assert plain.assurance is Assurance.HARDWARE


def test_another_boots_log_is_refused_whatever_the_policy_says() -> None:
    from aicert import bootlog

    other = Boot([(0, digest("x")), *Boot().events])
    with pytest.raises(bootlog.BootReplayError):
        measured(Boot(), "assurance: simulated", boot_event_log=other.log)


def test_the_boot_is_judged_at_the_baseline_not_at_the_end() -> None:
    """The run itself extends PCRs 8 and 14; at its start they must be zero."""
    dirty = Boot([*Boot().events, (14, digest("shim"))])
    with pytest.raises(policy.AssuranceError) as caught:
        measured(dirty, MEASURED, references=[SIGNED])
    assert "PCR 14" in str(caught.value.advice)


def test_policies_are_safe_to_share_between_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    shared = parse("maximumAge: 9d\ncommand: {starts: [python3]}")

    def one(day: int) -> bool:
        return all(r.passed for r in shared.check(facts(now=FINISHED + timedelta(days=day))))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, [1, 20] * 200)) == [True, False] * 200


def test_random_texts_never_crash_the_reader() -> None:
    import random

    chance = random.Random(7)
    seeds = [text for text, _ in ONE_MISTAKE]
    for _ in range(2000):
        text = list(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(len(text) + 1)
            text[position : position + chance.randint(0, 3)] = chance.choices(
                "{}[]:,&*!|>'\"\n\t #-?%@`ab01é\u2028\ud800\x00", k=chance.randint(0, 3)
            )
        try:
            Policy.parse("".join(text), "rules.yaml")
        except PolicyFileError as error:
            assert error.mistakes


def test_the_published_example_is_a_policy() -> None:
    """docs/policy.md shows one; what is shown must work."""
    page = Path(__file__).parents[1] / "docs" / "policy.md"
    blocks = page.read_text().split("```yaml\n")[1:]
    shown = [block.partition("```")[0] for block in blocks]
    assert len(shown) >= 3
    for text in shown:
        if text.startswith(("# a policy", "policy:")):
            with_files = any(word in text for word in ("file:", "extends:", "authorities:"))
            if with_files:
                with pytest.raises(PolicyFileError) as caught:
                    Policy.parse(text, "example.yaml")
                assert all("was not read from one" in m.what for m in caught.value.mistakes)
            else:
                Policy.parse(text, "example.yaml")
