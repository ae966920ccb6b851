"""The training spec: what is accepted, what is refused, and how mistakes are named."""

import copy
import json
import os
import pickle
import time
import unicodedata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aicert import canonical, events, manifest
from aicert.agent import spec as module
from aicert.agent import spec_checks as checks
from aicert.agent.spec import (
    Bar,
    Evaluation,
    Input,
    Limits,
    Problem,
    Spec,
    SpecError,
    UnreadableError,
    load,
    parse,
)
from aicert.reader import Reader

ROOT = Path(__file__).parents[2]
DIGEST = "0123456789abcdef" * 4
HF_TOKEN = "hf_" + "abcdefghijKLMNOPqrst"
PINNED = f"docker://registry.example:5000/team/train@sha256:{DIGEST}"

MINIMAL: dict[str, Any] = {"name": "demo", "image": "oci:image", "command": ["python3", "train.py"]}


def spec_with(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(MINIMAL), **fields}


def with_input(**fields: Any) -> dict[str, Any]:
    return spec_with(inputs=[{"name": "data", "uri": "file:data", **fields}])


def problems(value: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        module.check(value)
    return caught.value.problems


def problem(value: Any) -> Problem:
    (one,) = problems(value)
    return one


# -- what a spec means ---------------------------------------------------------------------------


def test_a_minimal_spec_gets_the_documented_defaults() -> None:
    assert Spec.model_validate(MINIMAL).to_json() == {
        "name": "demo",
        "description": "",
        "image": "oci:image",
        "command": ["python3", "train.py"],
        "environment": {},
        "inputs": [],
        "outputs": ["**"],
        "metrics": "metrics.json",
        "limits": {
            "memory": 2 << 30,
            "cpus": 1,
            "gpus": 0,
            "pids": 512,
            "time": 3600,
            "tmp": 1 << 30,
            "shm": 64 << 20,
        },
        "seed": 0,
    }


def test_the_digest_is_that_of_the_canonical_normalised_form() -> None:
    spec = Spec.model_validate(MINIMAL)
    assert spec.digest == canonical.sha256(spec.to_json())
    # A change of this value breaks every certificate's comparison with its spec.
    assert spec.digest == "62aef88628309716c69fd8c46c12f8f7ea392d57f50a264842d52bb488d9be38"


def test_friendly_and_plain_forms_give_the_same_spec() -> None:
    friendly = spec_with(limits={"memory": "1.5GiB", "time": "1h30m", "cpus": 2, "tmp": "512 MB"})
    plain = spec_with(limits={"memory": 3 << 29, "time": 5400, "cpus": 2.0, "tmp": 512 * 10**6})
    assert Spec.model_validate(friendly) == Spec.model_validate(plain)
    assert Spec.model_validate(friendly).digest == Spec.model_validate(plain).digest


def test_the_target_of_an_input_follows_its_name_unless_given() -> None:
    for target in ({}, {"target": None}, {"target": ""}):
        assert Spec.model_validate(with_input(**target)).inputs[0].target == "/inputs/data"
    assert Input(name="a", uri="file:x", target="/inputs/b/c").target == "/inputs/b/c"


def test_a_spec_cannot_be_changed() -> None:
    spec = Spec.model_validate(MINIMAL)
    with pytest.raises(ValidationError):
        spec.name = "other"
    with pytest.raises(ValidationError):
        spec.limits.memory = 1


def test_the_normalised_form_is_one_that_the_log_can_hold() -> None:
    spec = Spec.model_validate(
        spec_with(
            environment={"A": "b"},
            inputs=[
                {"name": "x", "uri": "hf://a/x", "revision": "v1", "sha256": DIGEST},
                {"name": "y", "uri": "file:y", "records": "jsonl"},
            ],
            limits={"cpus": 1.25},
        )
    )
    assert events.Spec.read(Reader(spec.to_json(), "spec")).to_json() == spec.to_json()


def test_the_bounds_are_within_those_of_the_log() -> None:
    longest = spec_with(
        description="d" * checks.MAX_TEXT,
        command=["c" * checks.MAX_ARGUMENT_BYTES],
        environment={f"V{i}": "x" for i in range(checks.MAX_ITEMS)},
        inputs=[{"name": f"i{i}", "uri": "file:x"} for i in range(checks.MAX_ITEMS)],
        outputs=[f"o{i}" for i in range(checks.MAX_ITEMS)],
        seed=checks.MAX_SEED,
        limits={"memory": checks.MAX_SIZE, "time": checks.MAX_TIME, "cpus": 0.1, "gpus": 64},
    )
    value = Spec.model_validate(longest).to_json()
    assert events.Spec.read(Reader(value, "spec")).to_json() == value


# -- round trips ---------------------------------------------------------------------------------


def _text(limit: int) -> st.SearchStrategy[str]:
    characters = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Cn"])
    return (
        st.text(characters, max_size=limit)
        .map(lambda text: unicodedata.normalize("NFC", text))
        .filter(lambda text: checks.secret_in(text) is None)
    )


_names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
_parts = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
_paths = st.lists(_parts, min_size=1, max_size=4).map("/".join)
_sizes = st.one_of(
    st.integers(16 << 20, 1 << 40),
    st.builds(lambda n, unit: f"{n}{unit}", st.integers(17, 4096), st.sampled_from(["MiB", "MB"])),
    st.sampled_from(["1.5GiB", "2 GB", "1TiB", "16777216"]),
)
_durations = st.one_of(
    st.integers(1, 10**6),
    st.builds(lambda h, m, s: f"{h}h{m}m{s}s", *[st.integers(1, 200)] * 3),
    st.sampled_from(["90s", "10 min", "1d 2h", "1.5h", "600"]),
)
_uris = st.one_of(
    _paths.map(lambda path: f"file:{path}"),
    _paths.map(lambda path: f"https://data.example/{path}"),
    _paths.map(lambda path: f"git+https://git@git.example/{path}"),
    _paths.map(lambda path: f"abfss://box@account.example/{path}"),
)
_limits = st.fixed_dictionaries(
    {},
    optional={
        "memory": _sizes,
        "tmp": _sizes,
        "shm": _sizes,
        "time": _durations,
        "cpus": st.one_of(st.integers(1, 1024), st.integers(100, 9999).map(lambda n: n / 1000)),
        "gpus": st.integers(0, 64),
        "pids": st.integers(16, 1 << 20),
    },
)
_inputs = st.lists(
    st.fixed_dictionaries(
        {"name": _names, "uri": _uris},
        optional={
            "revision": st.none() | _parts,
            "sha256": st.none() | st.from_regex("[0-9a-f]{64}", fullmatch=True),
            "records": st.none() | st.sampled_from(sorted(events.RECORD_METHODS)),
        },
    ),
    max_size=4,
    unique_by=lambda item: item["name"],
).map(
    lambda items: [
        item | ({} if str(item["uri"]).startswith(("git+", "abfss")) else {"revision": None})
        for item in items
        if item["name"] not in checks.RESERVED_INPUTS
    ]
)
_specs = st.fixed_dictionaries(
    {
        "name": _names,
        "image": st.sampled_from(["oci:image", "oci:/abs/image:v1", "oci-archive:i.tar", PINNED]),
        "command": st.builds(lambda a, b: [a, *b], _parts, st.lists(_text(20), max_size=3)),
    },
    optional={
        "description": _text(40),
        "environment": st.dictionaries(
            st.from_regex("V[A-Z0-9]{0,8}", fullmatch=True), _text(20), max_size=3
        ),
        "inputs": _inputs,
        "outputs": st.lists(_paths, min_size=1, max_size=3, unique=True),
        "metrics": st.none() | _paths,
        "limits": _limits,
        "seed": st.integers(0, 2**32 - 1),
    },
)


@given(_specs)
@settings(max_examples=200, deadline=None)
def test_every_spec_survives_its_normalised_form_byte_for_byte(value: dict[str, Any]) -> None:
    spec = Spec.model_validate(value)
    data = canonical.dumps(spec.to_json())
    parsed = canonical.loads_canonical(data, max_bytes=1 << 20)
    again = Spec.from_json(parsed)
    assert again == spec
    assert canonical.dumps(again.to_json()) == data
    # The log holds it, and Prefect's way of sending it keeps it.
    assert events.Spec.read(Reader(parsed, "spec")).to_json() == parsed
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(_specs)
@settings(max_examples=100, deadline=None)
def test_what_the_model_accepts_the_schema_accepts(value: dict[str, Any]) -> None:
    spec = Spec.model_validate(value)
    for form in (value, spec.to_json(), spec.model_dump(mode="json")):
        jsonschema.validate(form, SCHEMA, cls=jsonschema.Draft202012Validator)


@given(_specs)
@settings(max_examples=100, deadline=None)
def test_a_spec_reads_the_same_from_yaml_and_from_json(value: dict[str, Any]) -> None:
    expected = Spec.model_validate(value)
    assert parse(json.dumps(value), source="spec.json") == expected
    assert parse(yaml.safe_dump(value, allow_unicode=True), source="spec.yaml") == expected
    assert parse(json.dumps(value, ensure_ascii=False, indent=2), source="s.json") == expected


def test_the_agent_takes_nothing_but_the_normalised_form() -> None:
    good = Spec.model_validate(MINIMAL).to_json()
    assert Spec.from_json(good).to_json() == good
    assert Spec.from_json({**good, "limits": {**good["limits"], "cpus": 1.0}})
    for bad in (
        MINIMAL,
        {**good, "limits": {**good["limits"], "memory": "2GiB"}},
        {**good, "limits": {**good["limits"], "time": "1h"}},
        {**good, "inputs": [{"name": "a", "uri": "file:a"}]},
        {**good, "extra": 1},
        {**good, "seed": -1},
        [good],
        None,
        "text",
    ):
        with pytest.raises(SpecError):
            Spec.from_json(bad)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path", "what", "advice"),
    [
        (spec_with(comand=["x"]), "comand", "is not a known field", None),
        (spec_with(name="My Model"), "name", "is not a name", '"my-model"'),
        (spec_with(name=5), "name", "is not a text", '"5"'),
        (spec_with(name=""), "name", "is empty", None),
        (spec_with(description="a\x00b"), "description", "has a control", None),
        (spec_with(description="a\u202eb"), "description", "has a control", None),
        (spec_with(description="e\u0301"), "description", "normal form C", "é"),
        (spec_with(description="x" * 4097), "description", "is too long", None),
        (spec_with(name="a\ud800"), "name", "has a control", None),
        (spec_with(image="ubuntu:22.04"), "image", "has no known scheme", "containers-storage:"),
        (spec_with(image="docker:x/y"), "image", "lacks the slashes", '"docker://x/y"'),
        (spec_with(image="docker://x/y:1"), "image", "has no digest", "skopeo inspect"),
        (spec_with(image="docker://x/y"), "image", "has no digest", "skopeo inspect"),
        (
            spec_with(image=f"docker://x:1@sha256:{DIGEST}"),
            "image",
            "both a tag",
            f"x@sha256:{DIGEST}",
        ),
        (spec_with(image="docker-daemon:Train"), "image", "is not an image", "docker-daemon:train"),
        (spec_with(image="oci-archve:x"), "image", "has no known scheme", "oci-archive:x"),
        (spec_with(image="oci:"), "image", "names no image", None),
        (spec_with(image=f"h.example/a/b@sha256:{DIGEST}"), "image", "lacks its", "docker://h.ex"),
        (spec_with(image="docker://x@sha256:0123"), "image", "a digest of 4 characters", None),
        (spec_with(image="oci://x"), "image", "slashes", "oci:/x"),
        (
            spec_with(command="python3 train.py"),
            "command",
            "is not a list",
            '["python3", "train.py"]',
        ),
        (spec_with(command=[]), "command", "number of items", None),
        (spec_with(command=["", "sh", "x"]), "command[0]", "is no program", '["sh", "x"]'),
        (spec_with(command=["sh -c", "x"]), "command[0]", "is no program", '["sh", "-c", "x"]'),
        (spec_with(command=["a", 5]), "command[1]", "is not a text", '"5"'),
        (spec_with(command=["a\x07"]), "command[0]", "has a control", None),
        (spec_with(environment=["A=b"]), "environment", "is not a mapping", None),
        (spec_with(environment={"A B": "c"}), "environment.A B", "is not the name", None),
        (spec_with(environment={"A": 0.5}), "environment.A", "is not a text", '"0.5"'),
        (spec_with(environment={"A": None}), "environment.A", "has no value", '""'),
        (spec_with(environment={"AICERT_SEED": "1"}), "environment.AICERT_SEED", "is set by", None),
        (
            spec_with(environment={"PYTHONHASHSEED": "1"}),
            "environment.PYTHONHASHSEED",
            "may not",
            "seed",
        ),
        (spec_with(environment={"HOME": "/"}), "environment.HOME", "may not be set", "/tmp"),
        (
            spec_with(environment={"LD_PRELOAD": "/x"}),
            "environment.LD_PRELOAD",
            "may not be set",
            None,
        ),
        (
            spec_with(environment={"NVIDIA_VISIBLE_DEVICES": "all"}),
            "environment.NVIDIA_VISIBLE_DEVICES",
            "may not be set",
            "limits.gpus",
        ),
        (spec_with(inputs={"data": "file:x"}), "inputs", "is not a list", None),
        (spec_with(inputs=["file:x"]), "inputs[0]", "has the wrong form", None),
        (with_input(name="image"), "inputs[0].name", "reserved", None),
        (with_input(name="outputs"), "inputs[0].name", "reserved", None),
        (with_input(name="a."), "inputs[0].name", "ends in a dot", '"a"'),
        (with_input(uri="data/train"), "inputs[0].uri", "has no scheme", '"file:data/train"'),
        (with_input(uri="/abs/a b"), "inputs[0].uri", "has no scheme", '"file:///abs/a%20b"'),
        (with_input(uri="htps://x/y"), "inputs[0].uri", "unknown scheme", '"https://x/y"'),
        (with_input(uri="file:a b"), "inputs[0].uri", "has a space", '"file:a%20b"'),
        (with_input(uri="file:"), "inputs[0].uri", "names no file", None),
        (with_input(uri="file://data/x"), "inputs[0].uri", "another machine", "file:data/x"),
        (with_input(uri="https:x"), "inputs[0].uri", "names no host", None),
        (with_input(uri="https://[x"), "inputs[0].uri", "is not a URI", None),
        (
            with_input(uri="git@host.example:team/code"),
            "inputs[0].uri",
            "over SSH",
            '"git+https://host.example/team/code"',
        ),
        (
            with_input(uri="ssh://git@host.example/team/code"),
            "inputs[0].uri",
            "over SSH",
            '"git+https://host.example/team/code"',
        ),
        (
            with_input(uri="https://huggingface.co/datasets/a/b"),
            "inputs[0].uri",
            "address of a page",
            "hf://",
        ),
        (with_input(uri="https://x/a.git"), "inputs[0].uri", "address of a page", "git+https"),
        (with_input(uri="https://x/y#z"), "inputs[0].uri", "has a fragment", '"https://x/y"'),
        (with_input(uri="https://x/a%2Fb"), "inputs[0].uri", "cannot be a file's name", "Rename"),
        (with_input(uri="https://x/a%0Ab"), "inputs[0].uri", "cannot be a file's name", "Rename"),
        (with_input(uri="hf://name"), "inputs[0].uri", "model or data set", None),
        (with_input(uri="hf://a/b?x=1"), "inputs[0].uri", "model or data set", None),
        (with_input(uri="git+https://x/y?z=1"), "inputs[0].uri", "repository", '"git+https://x/y"'),
        (with_input(uri="git+https://x/y#z"), "inputs[0].uri", "repository", '"git+https://x/y"'),
        (with_input(uri="s3://b/k?x=1"), "inputs[0].uri", "more than the address", '"s3://b/k"'),
        (with_input(uri="gs://b/k#x"), "inputs[0].uri", "more than the address", '"gs://b/k"'),
        (with_input(revision="v1"), "inputs[0].revision", "have no revisions", "sha256"),
        *(
            (with_input(uri=uri, revision="v2"), "inputs[0].revision", "another than", '"v1"')
            for uri in (
                "git+https://x/y@v1",
                "hf://a/b@v1/c",
                "s3://b/k?versionId=v1",
                "gs://b/k?generation=v1",
                "abfss://c@a.dfs.core.windows.net/k?versionid=v1",
            )
        ),
        (
            with_input(sha256=f"SHA256:{DIGEST.upper()}"),
            "inputs[0].sha256",
            "not a SHA-256",
            DIGEST,
        ),
        (with_input(sha256="abc"), "inputs[0].sha256", "not a SHA-256", "aicert hash"),
        (with_input(target="/data"), "inputs[0].target", "does not lie below", '"/inputs/data"'),
        (with_input(target="/inputs"), "inputs[0].target", "does not lie below", None),
        (with_input(target="/inputs/../etc"), "inputs[0].target", "'..' part", None),
        (with_input(target="/inputs/a/"), "inputs[0].target", "empty", '"/inputs/a"'),
        (with_input(records="Line"), "inputs[0].records", "not a kind of records", '"lines"'),
        (with_input(records=["lines"]), "inputs[0].records", "is not a text", None),
        (with_input(revision="x" * 257), "inputs[0].revision", "is too long", None),
        (spec_with(outputs="**"), "outputs", "is not a list", '["**"]'),
        (spec_with(outputs=[]), "outputs", "number of items", None),
        (spec_with(outputs=["a", "a"]), "outputs[1]", "stands twice", None),
        (spec_with(outputs=["/outputs/model"]), "outputs[0]", "is absolute", '"model"'),
        (spec_with(outputs=["../x"]), "outputs[0]", "'..' part", None),
        (spec_with(outputs=["./x"]), "outputs[0]", "part", '"x"'),
        (spec_with(outputs=["model/"]), "outputs[0]", "names a folder", '"model/**"'),
        (spec_with(outputs=["m[0-9].bin"]), "outputs[0]", "no wildcards", None),
        (spec_with(outputs=["**.bin"]), "outputs[0]", "has ** beside", '"*.bin"'),
        (spec_with(outputs=["!x"]), "outputs[0]", "excludes", None),
        (spec_with(metrics="/outputs/m.json"), "metrics", "is absolute", '"m.json"'),
        (spec_with(metrics="a/../m.json"), "metrics", "'..' part", None),
        (spec_with(limits=5), "limits", "has the wrong form", None),
        (spec_with(limits={"memroy": 5}), "limits.memroy", "is not a known field", '"memory"'),
        (spec_with(limits={"mem": 5}), "limits.mem", "is not a known field", '"memory"'),
        (spec_with(env={"A": "b"}), "env", "is not a known field", '"environment"'),
        (spec_with(limits={"memory": "2G"}), "limits.memory", "is not a size", '"2GiB"'),
        (spec_with(limits={"memory": "2gb"}), "limits.memory", "is not a size", '"2GB"'),
        (spec_with(limits={"memory": 2}), "limits.memory", "is too small", '"2GiB"'),
        (spec_with(limits={"memory": "900TiB"}), "limits.memory", "is too large", None),
        (spec_with(limits={"memory": "0.1B"}), "limits.memory", "whole number of bytes", None),
        (spec_with(limits={"memory": True}), "limits.memory", "is not a size", None),
        (spec_with(limits={"memory": 1.5e9}), "limits.memory", "is not a size", None),
        (spec_with(limits={"time": "10 minutes"}), "limits.time", "not a duration", '"10min"'),
        (spec_with(limits={"time": "30m1h"}), "limits.time", "not a duration", "larger unit first"),
        (spec_with(limits={"time": "1h1h"}), "limits.time", "not a duration", "each one once"),
        (spec_with(limits={"time": 0}), "limits.time", "out of range", None),
        (spec_with(limits={"time": "400d"}), "limits.time", "out of range", None),
        (spec_with(limits={"time": "0.1s"}), "limits.time", "whole number of seconds", None),
        (spec_with(limits={"cpus": "1.5"}), "limits.cpus", "is not a number", "1.5"),
        (spec_with(limits={"cpus": 0}), "limits.cpus", "out of range", None),
        (spec_with(limits={"cpus": float("nan")}), "limits.cpus", "out of range", None),
        (spec_with(limits={"cpus": 1 / 3}), "limits.cpus", "three decimals", "0.333"),
        (spec_with(limits={"cpus": True}), "limits.cpus", "is not a number", None),
        (spec_with(limits={"gpus": 1.0}), "limits.gpus", "is not an integer", None),
        (spec_with(limits={"pids": 1}), "limits.pids", "out of range", None),
        (spec_with(seed="42"), "seed", "is not an integer", "42"),
        (spec_with(seed=2**32), "seed", "out of range", None),
        (spec_with(seed=True), "seed", "is not an integer", None),
        ([], "", "has the wrong form", None),
        (None, "", "has the wrong form", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_with_its_place_and_advice(
    value: Any, path: str, what: str, advice: str | None
) -> None:
    found = problem(value)
    assert found.path == path
    assert what in found.what
    assert advice is None or advice in (found.advice or "")
    assert found.line is None


@pytest.mark.parametrize("field", ["name", "image", "command"])
def test_a_missing_field_is_named_with_what_it_should_hold(field: str) -> None:
    value = {key: item for key, item in MINIMAL.items() if key != field}
    found = problem(value)
    assert (found.path, found.what) == (field, "is missing")
    assert found.expected


@pytest.mark.parametrize(
    ("bar", "path", "what"),
    [
        ({"a": {"atLeast": 2, "atMost": 1}}, "evaluation.bar.a", "cannot be reached"),
        ({"a": 0.9}, "evaluation.bar.a", "neither at least nor at most"),
        ({"a\nb": {"atLeast": 2}}, "evaluation.bar", "not the name of a metric"),
    ],
)
def test_a_bar_that_says_nothing_or_the_impossible_is_named(
    bar: dict[str, Any], path: str, what: str
) -> None:
    value = with_input(certificate=DIGEST) | {"evaluation": {"model": "data", "bar": bar}}
    found = problem(value)
    assert (found.path, bool(found.expected or found.advice)) == (path, True)
    assert what in found.what


def test_what_a_spec_names_beside_itself_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1")
    (tmp_path / "image").mkdir()
    text = (
        "name: x\nimage: oci:imgae:latest\ncommand: [a]\n"
        "inputs:\n  - {name: a, uri: file:trian.csv}\n  - {name: b, uri: file:train.csv}\n"
        "  - {name: c, uri: 'file:none/at%20all'}\n  - {name: d, uri: file:///elsewhere}\n"
    )
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "spec.yaml")
    found = [(p.path, p.line, p.advice) for p in caught.value.problems]
    assert found == [
        ("image", 2, 'Did you mean "image"?'),
        ("inputs[0].uri", 5, 'Did you mean "train.csv"?'),
        ("inputs[2].uri", 7, None),
    ]
    assert all(p.expected for p in caught.value.problems)
    parse(text, source="spec.yaml")  # where it lies is not known: nothing is looked for


def test_a_misspelt_field_is_one_mistake_and_not_two() -> None:
    value = {"name": "x", "image": "oci:x", "comand": ["a"]}
    found = problem(value)
    assert (found.path, found.advice) == ("comand", 'Did you mean "command"?')


def test_inputs_have_names_of_their_own() -> None:
    inputs = [{"name": "a", "uri": "file:x"}, {"name": "a", "uri": "file:y"}]
    found = problem(spec_with(inputs=inputs))
    assert (found.path, found.what) == ("inputs[1].name", "is also the name of inputs[0]")


@pytest.mark.parametrize("target", ["/inputs/a", "/inputs/a/b", "/inputs/A"])
def test_the_targets_of_inputs_do_not_overlap(target: str) -> None:
    inputs = [{"name": "a", "uri": "file:x"}, {"name": "b", "uri": "file:y", "target": target}]
    for items, path in ((inputs, "inputs[1].target"), (inputs[::-1], "inputs[1].target")):
        found = problem(spec_with(inputs=items))
        assert found.path == path
        assert "overlaps the target of inputs[0]" in found.what


def test_a_spec_that_is_too_large_is_refused() -> None:
    found = problem(spec_with(command=["x" * 100_000] * 11))
    assert "is too large" in found.what


@pytest.mark.parametrize(
    "value",
    [
        spec_with(image="docker://" + "a-" * 2000),
        spec_with(image="docker://" + "a" * 4000 + "!"),
        spec_with(command="x" * 1_000_000),
        spec_with(command=["sk-" + "a-" * 60_000 + "!", "://" * 40_000, "bearer " * 10_000, 1]),
        spec_with(environment={"A": "://a:" * 6000, "B_" * 60 + "X!": "x"}),
        spec_with(limits={"time": "1a" * 500_000, "memory": "1" * 500_000}),
        with_input(uri="a" * 4000),
    ],
    ids=["image", "upper", "command", "arguments", "environment", "limits", "uri"],
)
def test_a_hostile_text_is_answered_quickly_and_shortly(value: dict[str, Any]) -> None:
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        module.check(value)
    assert time.process_time() - start < 2
    assert len(str(caught.value)) < 3000


def test_lines_and_tabs_are_allowed_where_programs_need_them() -> None:
    script = "import sys\nif sys:\n\tpass"
    spec = Spec.model_validate(
        spec_with(command=["python3", "-c", script], environment={"A": "1\n2"}, description="a\nb")
    )
    assert spec.command[2] == script


# -- secrets -------------------------------------------------------------------------------------

SECRETS = [
    HF_TOKEN,
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1" * 20,
    "glpat-" + "a1" * 10,
    "AIza" + "a1_-" * 9,
    "xoxb-" + "1234567890-abc",
    "sk-" + "proj-" + "a1" * 20,
    "eyJhbGciOiJI" + "." + "eyJzdWIiOiIx" + ".sig",
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://x.example/y?sv=1&sig=abc%3D",
    "AccountKey=abcdef==",
    "https://me:pass@x.example/y",
    "Authorization: Bearer abcdefghijklmnop",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        lambda s: spec_with(environment={"SETTING": s}),
        lambda s: spec_with(environment={"SETTING": f"x {s}"}),
        lambda s: spec_with(command=["train", "--with", s]),
        lambda s: spec_with(description=f"use {s}"),
        lambda s: with_input(revision=s),
        lambda s: with_input(uri=s if "://" in s else f"https://x.example/{s.replace(' ', '%20')}"),
    ],
    ids=["variable", "inside", "argument", "description", "revision", "uri"],
)
def test_what_looks_like_a_secret_is_refused_and_never_shown(secret: str, place: Any) -> None:
    with pytest.raises(SpecError) as caught:
        module.check(place(secret))
    text = caught.value.diagnostics() + repr(caught.value.problems)
    assert "holds a" in text
    assert "aicert Input Credentials" in text
    assert secret not in text
    # Prefect prints pydantic's own error: that must not show it either.
    with pytest.raises(ValidationError) as raw:
        Spec.model_validate(place(secret))
    assert secret not in str(raw.value) + repr(raw.value.errors())


@pytest.mark.parametrize(
    "uri",
    [
        "https://user@x.example/y",
        "https://x.example/y?token=abc",
        "https://x.example/y?access_token=abc",
        "https://x.example/y?X-Amz-Signature=abc",
        "https://x.example/y?key=abc",
        "git+https://user@git.example/x",
        "git+https://git:pw@git.example/x",
        "s3://id@bucket/x",
        "abfss://box:pw@account.example/x",
    ],
)
def test_a_uri_carries_no_credential(uri: str) -> None:
    assert "holds" in problem(with_input(uri=uri)).what


@pytest.mark.parametrize(
    "uri",
    [
        "git+https://git@git.example/x@main#subdirectory=a",
        "abfss://box@account.example/x",
        "s3://bucket/key?versionId=abc",
        "https://x.example/y?page=2",
        "hf://datasets/owner/name@main/train",
        "file:../code",
        "file:///data/x.csv",
        "file:a%20b",
    ],
)
def test_a_plain_uri_is_accepted_as_written(uri: str) -> None:
    assert Spec.model_validate(with_input(uri=uri)).inputs[0].uri == uri


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "TOKEN", "DB_PASSWORD", "api_key", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
     "MY_SECRET", "WANDB_API_KEY", "PGPASSWORD_FILE_PASSWORD", "SSH_KEY", "GITHUB_PAT_TOKEN"],
)  # fmt: skip
def test_a_variable_with_the_name_of_a_secret_is_refused(name: str) -> None:
    found = problem(spec_with(environment={name: "whatever"}))
    assert "name of a secret" in found.what
    assert "another name" in (found.advice or "")
    assert "whatever" not in str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [("EOS_TOKEN", "</s>"), ("MAX_TOKEN", "512"), ("TOKENIZER", "bpe"), ("TOKENIZERS_PARALLELISM",
     "false"), ("KEYBOARD", "x"), ("MONKEY", "x"), ("HF_TOKEN", "")],
)  # fmt: skip
def test_a_variable_that_only_sounds_like_a_secret_is_accepted(name: str, value: str) -> None:
    assert Spec.model_validate(spec_with(environment={name: value})).environment == {name: value}


def test_the_image_reference_holds_no_secret_either() -> None:
    assert "holds a password" in problem(spec_with(image="docker://u:p@h/x")).what


@pytest.mark.parametrize(
    "name",
    ["sig", "Signature", "X-Amz-Security-Token", "x-goog-credential", "my_token", "api-key",
     "apikey", "client_secret", "password", "pwd", "auth", "credentials", "Key-Pair-Id", "code"],
)  # fmt: skip
def test_a_uri_that_fetching_would_refuse_is_refused_before_the_run(name: str) -> None:
    assert "holds" in problem(with_input(uri=f"https://x.example/y?a=b&{name}=c")).what


# -- files ---------------------------------------------------------------------------------------

GOOD = """\
# A comment.
name: demo
image: oci:image
command: [python3, /inputs/code/train.py]
environment:
  LEARNING_RATE: 1e-3
  COUNTRY: no
  VERSION: 1.10
  OCTAL: 0123
  EMPTY: ""
inputs:
  - name: code
    uri: git+https://git.example/src
    revision: 123e4567
limits:
  memory: 2GiB
  cpus: 1.5
  time: 10min
seed: 7
"""


def test_yaml_keeps_the_text_of_what_is_a_text() -> None:
    spec = parse(GOOD, source="spec.yaml")
    assert spec.environment == {
        "LEARNING_RATE": "1e-3",
        "COUNTRY": "no",
        "VERSION": "1.10",
        "OCTAL": "0123",
        "EMPTY": "",
    }
    assert spec.inputs[0].revision == "123e4567"
    assert (spec.limits.cpus, spec.seed, spec.limits.memory) == (1.5, 7, 2 << 30)


def test_every_mistake_in_a_file_is_named_at_once_with_line_and_column() -> None:
    text = GOOD.replace("seed: 7", "seed: yes\nsead: 1")
    for good, bad in (
        ("name: demo", "name: Demo"),
        ("oci:image", "image"),
        ("  memory: 2GiB", "  memroy: 2GiB"),
        ("git+https://git.example/src", "src"),
    ):
        text = text.replace(good, bad)
    with pytest.raises(SpecError) as caught:
        parse(text, source="spec.yaml")
    assert [(p.path, p.line, p.column) for p in caught.value.problems] == [
        ("name", 2, 7),
        ("image", 3, 8),
        ("inputs[0].uri", 13, 10),
        ("limits.memroy", 16, 3),
        ("seed", 19, 7),
        ("sead", 20, 1),
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == "spec.yaml: 6 mistakes in the training spec"
    assert lines[1].startswith("  spec.yaml:2:7: name: is not a name")
    assert caught.value.diagnostics().startswith(f"{lines[0]}  [spec.invalid]\n")
    assert caught.value.to_json()["code"] == "spec.invalid"


def test_the_same_places_are_named_in_json() -> None:
    text = '{\n  "name": "Demo",\n  "image": "oci:i",\n  "command": ["a", 1],\n  "sed": 1\n}'
    with pytest.raises(SpecError) as caught:
        parse(text, source="spec.json")
    assert [(p.path, p.line, p.column) for p in caught.value.problems] == [
        ("name", 2, 11),
        ("command[1]", 4, 20),
        ("sed", 5, 3),
    ]


def test_a_missing_field_of_an_input_is_placed_at_the_input() -> None:
    text = "name: x\nimage: oci:x\ncommand: [a]\ninputs:\n  - name: a\n"
    with pytest.raises(SpecError) as caught:
        parse(text, source="s.yaml")
    (found,) = caught.value.problems
    assert (found.path, found.line, found.column) == ("inputs[0].uri", 5, 5)


@pytest.mark.parametrize(
    ("source", "text", "line", "what"),
    [
        ("s.yaml", "name: a\nname: b\nimage: oci:x\ncommand: [a]\n", 2, "stands twice"),
        ("s.yaml", "name: &a x\nimage: oci:x\ncommand: [a]\n", 1, "anchor or alias"),
        ("s.yaml", "name: x\nimage: oci:x\ncommand: *a\n", 3, "anchor or alias"),
        ("s.yaml", "name: !!str x\nimage: oci:x\ncommand: [a]\n", 1, "has a tag"),
        ("s.yaml", "name: !!python/object/apply:os.system [x]\n", 1, "has a tag"),
        ("s.yaml", "name: x\n\timage: oci:x\n", 2, "is not YAML"),
        ("s.yaml", "name: [x\n", 2, "is not YAML"),
        ("s.yaml", "name: a: b\n", 1, "is not YAML"),
        ("s.yaml", "name: x\x00\n", 1, "is not YAML"),
        ("s.yaml", "? [a]\n: b\n", 1, "key that is not a text"),
        ("s.yaml", "name: x\nimage: oci:x\ncommand: [a]\n---\nb: c\n", 4, "more than one document"),
        ("s.yaml", "name: " + "[" * 40 + "]" * 40, 1, "nests too deep"),
        ("s.json", '{"name": "a", "name": "b"}', 1, "stands twice"),
        ("s.json", '{\n"name": "a",\n}', 3, "is not JSON"),
        ("s.json", '{"name": NaN}', 1, "is not JSON"),
        ("s.json", '{"name": 1e999}', 1, "cannot be kept exact"),
        ("s.json", '{"name": "a"} x', 1, "after its end"),
        ("s.json", "[" * 40 + "]" * 40, 1, "nests too deep"),
        ("s.json", '{"a\n": 1}', 1, "is not JSON"),
        ("s.json", "", 1, "is not JSON"),
    ],
)  # fmt: skip
def test_a_text_that_is_not_plain_data_is_refused(
    source: str, text: str, line: int, what: str
) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, source=source)
    assert any(what in p.what and p.line == line for p in caught.value.problems), str(caught.value)


def test_an_empty_file_is_said_to_be_no_mapping() -> None:
    for text in ("", "# nothing\n", "---\n"):
        with pytest.raises(SpecError, match="has the wrong form"):
            parse(text, source="s.yaml")


def test_a_bomb_of_aliases_costs_nothing() -> None:
    lines = ['a0: &a0 ["x", "x"]']
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(SpecError) as caught:
        parse("\n".join(lines), source="s.yaml")
    assert len(caught.value.problems) <= 100


def test_a_file_is_read_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "a.yaml").write_text(GOOD)
    spec = load(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text(json.dumps(spec.to_json()))
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(tmp_path / "a.json") == load(str(tmp_path / "bom.yml")) == spec


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UnreadableError, match="cannot be read") as caught:
            load(path)
        assert caught.value.code == "spec.unreadable"


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SpecError, match="is too large"):
        load(tmp_path / "large.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: x\nimage: \xe9\n")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "latin.yaml")
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 8)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SpecError):
        load(tmp_path / "pipe.yaml")


def test_a_large_file_of_mistakes_is_answered_quickly_and_shortly() -> None:
    text = "inputs:\n" + "  - {name: A, uri: x, foo: 1}\n" * 200
    with pytest.raises(SpecError) as caught:
        parse(text, source="s.yaml")
    assert len(caught.value.problems) == 100


def test_an_error_crosses_processes_whole() -> None:
    with pytest.raises(SpecError) as caught:
        parse("name: X", source="s.yaml")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


# -- what is published ---------------------------------------------------------------------------

SCHEMA = Spec.model_json_schema()


def test_the_published_schema_is_the_one_of_the_model() -> None:
    committed = json.loads((ROOT / "docs" / "spec.schema.json").read_text())
    assert committed == module.json_schema(), (
        "docs/spec.schema.json is out of date: write `python -m aicert.agent.spec` into it"
    )


def test_the_schema_describes_every_field_and_shows_defaults_as_people_write_them() -> None:
    for name, model in (("Spec", Spec), ("Input", Input), ("Limits", Limits)):
        fields = SCHEMA if name == "Spec" else SCHEMA["$defs"][name]
        assert fields["additionalProperties"] is False
        for field in model.model_fields:
            assert fields["properties"][field]["description"], f"{name}.{field}"
    limits = SCHEMA["$defs"]["Limits"]["properties"]
    assert {name: limits[name]["default"] for name in ("memory", "time", "tmp", "shm")} == {
        "memory": "2GiB",
        "time": "1h",
        "tmp": "1GiB",
        "shm": "64MiB",
    }
    assert SCHEMA["properties"]["limits"]["default"]["memory"] == "2GiB"


def test_the_defaults_in_the_schema_are_the_defaults() -> None:
    shown = {
        name: field["default"] for name, field in SCHEMA["properties"].items() if "default" in field
    }
    assert Spec.model_validate({**MINIMAL, **shown}) == Spec.model_validate(MINIMAL)


def test_every_example_in_the_schema_is_good() -> None:
    fields: dict[tuple[str, ...], Any] = {
        **{(name,): field for name, field in SCHEMA["properties"].items()},
        **{("limits", n): field for n, field in SCHEMA["$defs"]["Limits"]["properties"].items()},
        **{("inputs", n): field for n, field in SCHEMA["$defs"]["Input"]["properties"].items()},
    }
    count = 0
    for path, field in fields.items():
        for example in field.get("examples", []):
            if path[0] == "inputs":
                source = {"uri": "hf://owner/name"} if path[1] == "revision" else {}
                Spec.model_validate(with_input(**source | {path[1]: example}))
            elif path[0] == "limits":
                Spec.model_validate(spec_with(limits={path[1]: example}))
            else:
                Spec.model_validate(spec_with(**{path[0]: example}))
            count += 1
    assert count > 20


def test_the_example_in_the_documentation_is_good() -> None:
    text = (ROOT / "docs" / "spec.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        parse(block, source="docs/spec.md")


def test_the_documentation_names_every_field_and_default() -> None:
    text = (ROOT / "docs" / "spec.md").read_text()
    for model in (Spec, Input, Limits, Bar, Evaluation):
        for field in model.model_fields:
            assert f"`{field}`" in text, field


def test_a_path_that_collides_in_a_manifest_collides_as_a_target() -> None:
    assert manifest.fold("Data") == manifest.fold("data")
    inputs = [
        {"name": "a", "uri": "file:x", "target": "/inputs/Data"},
        {"name": "b", "uri": "file:y", "target": "/inputs/data"},
    ]
    assert "overlaps" in problem(spec_with(inputs=inputs)).what
