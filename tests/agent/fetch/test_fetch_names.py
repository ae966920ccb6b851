"""Promises about names: whatever a source calls its files, nothing is written elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicert.agent.fetch import InputRequest, RemoteFile, Resolved, errors, fetch, resolve
from aicert.agent.fetch.source import Source
from tests.agent.fetch.conftest import QUICK


class Hostile(Source):
    """A source that calls its files what it likes."""

    def __init__(self, names: list[str]) -> None:
        files = tuple(RemoteFile(name, 1, "tag") for name in names)
        self.resolved = Resolved("s3", "s3://b/", "s3://b/", "r", None, "tree", files)

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        yield b"x"

    def close(self) -> None:
        pass


def bring(names: list[str], folder: Path) -> Path:
    with mock.patch("aicert.agent.fetch.resolve._open", lambda *_: Hostile(names)):
        into = folder / "a" / "b" / "into"
        return fetch(
            InputRequest("it", "s3://b/"), into, base=None, partial=folder / "p", retry=QUICK
        ).path


BAD = [
    "../x", "a/../../x", "/etc/x", "a//b", "a/./b", ".", "..", "", "a/", "a\\b", "..\\x", "C:x",
    "C:/x", "a\0b", "a\nb", "a\x7f", "e\u0301", "a\u202eb", "a.", "a ", "\ud800", "x" * 2000,
    "/".join("d" * 70),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.PathError):
        bring(["good", name], tmp_path)
    assert not list(tmp_path.rglob("good"))


@pytest.mark.parametrize(
    "names",
    [["a", "A"], ["é", "É"], ["ﬁ", "fi"], ["a", "a"], ["a", "a/b"], ["Straße", "STRASSE"]],
)
def test_names_that_are_one_file_somewhere_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(errors.PathError):
        bring(names, tmp_path)


PARTS = st.sampled_from(["..", ".", "", "a", "B", "b", "~", "C:", "\\", "\0", "é", "e\u0301", " "])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join) | st.text(max_size=12)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_whatever_the_names_nothing_is_written_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("n")
    wanted = set(names)
    try:
        into = bring(names, folder)
    except errors.FetchError:
        into = folder / "none"
        wanted = set()
    found = {path for path in folder.rglob("*") if path.is_file() and path.name != "journal"}
    assert {str(path.relative_to(into)) for path in found} == wanted


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("htps://x/y", "https"),
        ("S3://b/k", "s3"),
        ("data/train.csv", "file:"),
        ("C:\\data", "file:"),
        ("git@github.com:owner/repo", "git+https"),
        ("ssh://git@host/repo", "git+https"),
        ("ipfs://x", "one of these"),
    ],
)
def test_an_unknown_kind_of_uri_names_the_known_ones(uri: str, advice: str) -> None:
    with pytest.raises(errors.SchemeError) as caught:
        resolve(InputRequest("it", uri), base=None)
    assert advice in (caught.value.advice or "")
    assert "git+https" in (caught.value.expected or "")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(errors.MissingExtraError) as caught:
        resolve(InputRequest("it", "s3://bucket/key"), base=None)
    assert "'.[s3]'" in (caught.value.advice or "")


@pytest.mark.parametrize(
    "request_",
    [InputRequest("it", "file:x", sha256="short"), InputRequest("it", "file:x\ny")],
)
def test_a_request_that_makes_no_sense_is_refused(request_: InputRequest, tmp_path: Path) -> None:
    with pytest.raises(errors.UnresolvableError):
        resolve(request_, base=tmp_path)
