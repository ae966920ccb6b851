"""A survey reads an input through, keeps nothing, and finds what fetching it would find."""

from pathlib import Path

import pytest

from aicert.agent.fetch import InputRequest, Surveyed, errors, survey
from tests.agent.fetch.conftest import QUICK, Bring
from tests.agent.fetch.test_fetch_git import Repository
from tests.agent.fetch.web import Page, Web


def look(uri: str, base: Path | None = None) -> str:
    return survey(InputRequest("it", uri, None, None), base=base, retry=QUICK).manifest.digest


def test_a_folder_is_surveyed_as_it_is_fetched(bring: Bring, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "a").write_bytes(b"one")
    (tree / "deep" / "b").write_bytes(b"x" * 100_000)
    first = look("file:tree", tmp_path)
    assert first == bring("file:tree").manifest.digest
    (tree / "deep" / "b").write_bytes(b"y" * 100_000)
    assert look("file:tree", tmp_path) != first


def test_a_page_is_surveyed_as_it_is_fetched(bring: Bring, web: Web) -> None:
    web.pages["/data.bin"] = Page(b"x" * 100_000)
    uri = f"{web.url}/data.bin"
    assert look(uri) == bring(uri).manifest.digest


def test_a_repository_is_surveyed_as_it_is_fetched(bring: Bring, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit(a="one", deep__b="two")
    assert (
        look(f"{repository.uri}@main", tmp_path) == bring(f"{repository.uri}@main").manifest.digest
    )


def test_what_is_not_there_cannot_be_surveyed(tmp_path: Path, web: Web) -> None:
    for uri in ("file:nowhere", f"{web.url}/nowhere"):
        with pytest.raises(errors.FetchError):
            look(uri, tmp_path)


def test_parts_are_disjoint_and_make_the_whole(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(7):
        (tree / f"{number}").write_bytes(b"x" * (number * 1000))
    request = InputRequest("it", "file:tree")
    whole = survey(request, base=tmp_path)
    parts = [survey(request, base=tmp_path, part=part, parts=3) for part in range(3)]
    assert sorted(len(part.files) for part in parts) == [2, 2, 3]
    merged = Surveyed.merged(parts)
    assert merged.manifest == whole.manifest
    assert merged.sha256 == whole.sha256 == whole.manifest.root
    more = [survey(request, base=tmp_path, part=part, parts=9) for part in range(9)]
    assert Surveyed.merged(more).manifest == whole.manifest


def test_parts_of_what_changed_meanwhile_are_not_put_together(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"one")
    (tree / "b").write_bytes(b"two")
    request = InputRequest("it", "file:tree")
    first = survey(request, base=tmp_path, part=0, parts=2)
    (tree / "c").write_bytes(b"three")
    with pytest.raises(errors.ChangedError) as caught:
        Surveyed.merged([first, survey(request, base=tmp_path, part=1, parts=2)])
    assert "try again" in (caught.value.advice or "")
