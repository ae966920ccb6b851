"""Promises about inputs from the Hugging Face Hub, kept against a stand-in for its API.

The stand-in answers the three calls that the Hub's own library and the download make: revision,
tree (in two pages) and resolve, which redirects large files to another host with a signed URL.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aicert.agent.fetch import errors
from tests.agent.fetch.conftest import Bring, content, noise
from tests.agent.fetch.web import Handler, Page, Web, refuse

OLD, NEW = "a" * 40, "b" * 40
LARGE = noise(300_000)
FILES = {"README.md": b"# data\n", "data/train-00000.parquet": LARGE, "data/notes é.txt": b"x"}


class Hub:
    """A Hub with one data set and one model."""

    def __init__(self, web: Web, cdn: Web) -> None:
        self.web, self.cdn = web, cdn
        self.token: str | None = None
        self.files = dict(FILES)
        for prefix, name in (("datasets/", "owner/set"), ("models/", "owner/model")):
            for revision, commit in (("main", NEW), ("refs%2Fpr%2F1", OLD), (NEW, NEW), (OLD, OLD)):
                self._page(f"/api/{prefix}{name}/revision/{revision}", {"id": name, "sha": commit})
            for commit in (OLD, NEW):
                self._tree(f"/api/{prefix}{name}/tree/{commit}")
                for path in self.files:
                    self._file(prefix.replace("models/", ""), name, commit, path)

    def _page(self, path: str, value: object) -> Page:
        page = Page(json.dumps(value).encode(), {"Content-Type": "application/json"})
        page.always = self._guard
        self.web.pages[path] = page
        return page

    def _guard(self, handler: Handler) -> bool:
        if self.token and handler.asked.headers.get("authorization") != f"Bearer {self.token}":
            handler.status(401, {"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def _tree(self, path: str) -> None:
        page = self._page(path, [])

        def answer(handler: Handler) -> bool:
            if self._guard(handler):
                return True
            entries: list[dict[str, object]] = [{"type": "directory", "path": "data", "oid": "d"}]
            for name, data in self.files.items():
                oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry: dict[str, object] = {"path": name, "oid": oid, "size": len(data)}
                if len(data) > 1000:
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
                entries.append({"type": "file", **entry})
            second = "cursor=2" in handler.path
            page.data = json.dumps(entries[2:] if second else entries[:2]).encode()
            page.headers = {"Content-Type": "application/json"}
            if not second:
                more = f"{self.web.url}{path}?recursive=true&cursor=2"
                page.headers["Link"] = f'<{more}>; rel="next"'
            return False

        page.always = answer

    def _file(self, prefix: str, name: str, commit: str, path: str) -> None:
        from urllib.parse import quote

        page = Page(self.files[path])

        def answer(handler: Handler) -> bool:
            if self._guard(handler):
                return True
            if len(self.files[path]) > 1000:
                self.cdn.pages[f"/{path}"] = Page(self.files[path], {"ETag": '"cdn"'})
                handler.status(302, {"Location": f"{self.cdn.url}/{path}?X-Amz-Signature=s1gned"})
                return True
            return False

        page.always = answer
        self.web.pages[f"/{prefix}{name}/resolve/{commit}/{quote(path)}"] = page


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Web() as web, Web() as cdn:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setenv("HF_TOKEN", "the-machines-own-token")
        yield Hub(web, cdn)


pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(("uri", "home"), [("datasets/owner/set",) * 2, ("owner/model",) * 2])
def test_main_becomes_a_commit_and_the_whole_repository_comes(
    hub: Hub, bring: Bring, uri: str, home: str
) -> None:
    got = bring(f"hf://{uri}")
    assert content(got.path) == FILES
    assert got.resolved.revision == NEW
    assert got.resolved.uri == f"hf://{home}@{NEW}?endpoint={hub.web.url}"
    assert got.resolved.requested == f"hf://{uri}"
    # The Hub says which commit it is; nobody checked, so it is not called a git commit.
    assert got.resolved.git_commit is None


@pytest.mark.parametrize(
    "form", ["hf://datasets/owner/set@refs%2Fpr%2F1", "hf://datasets/owner/set"]
)
def test_a_revision_can_be_named_in_two_ways(hub: Hub, bring: Bring, form: str) -> None:
    revision = None if "@" in form else "refs/pr/1"
    assert bring(form, revision=revision).resolved.revision == OLD


def test_a_folder_or_a_file_can_be_named(hub: Hub, bring: Bring) -> None:
    got = bring("hf://datasets/owner/set/data")
    assert set(content(got.path)) == {"train-00000.parquet", "notes é.txt"}
    assert got.resolved.kind == "tree"


def test_one_file_comes_as_a_file(hub: Hub, bring: Bring) -> None:
    got = bring("hf://datasets/owner/set/data/train-00000.parquet")
    assert (got.resolved.kind, got.sha256) == ("file", hashlib.sha256(LARGE).hexdigest())


def test_large_files_come_in_ranges_from_where_the_hub_sends_us_once(
    hub: Hub, bring: Bring
) -> None:
    bring("hf://datasets/owner/set", secrets={"token": "hf_mine"}, jobs=1)
    ranges = [asked for asked in hub.cdn.asked if "range" in asked.headers]
    assert len(ranges) == 5
    resolved = [asked for asked in hub.web.asked if asked.path.endswith(".parquet")]
    assert len(resolved) == 1
    assert all("authorization" not in asked.headers for asked in hub.cdn.asked)


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: Hub, bring: Bring) -> None:
    def tamper(handler: Handler) -> bool:
        handler.page.data = noise(len(LARGE), 2)
        return False

    hub.cdn.pages = _Tampered(hub.cdn.pages, tamper)
    with pytest.raises(errors.DigestMismatchError) as caught:
        bring("hf://datasets/owner/set")
    assert "data/train-00000.parquet" in caught.value.message
    assert caught.value.expected == hashlib.sha256(LARGE).hexdigest()


class _Tampered(dict[str, Page]):
    def __init__(self, pages: dict[str, Page], tamper: object) -> None:
        super().__init__(pages)
        self.tamper = tamper

    def __setitem__(self, path: str, page: Page) -> None:
        page.always = self.tamper  # type: ignore[assignment]
        super().__setitem__(path, page)


def test_the_token_of_the_input_is_used_and_never_the_machines(hub: Hub, bring: Bring) -> None:
    hub.token = "hf_mine"
    with pytest.raises(errors.NotFoundError):
        bring("hf://datasets/owner/set")
    assert not any("authorization" in asked.headers for asked in hub.web.asked)
    assert content(bring("hf://datasets/owner/set", secrets={"token": "hf_mine"}).path) == FILES


def test_it_works_in_a_process_that_has_not_used_the_library_before() -> None:
    # Here another test may have imported a part of the library that nobody asked for.
    script = (
        "from aicert.agent.fetch import hf; import sys; hf.library().HfApi; "
        "sys.exit(not sys.modules['huggingface_hub.constants'].HF_HUB_DISABLE_TELEMETRY)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_gated_repository_says_what_to_do(hub: Hub, bring: Bring) -> None:
    page = hub.web.pages["/api/datasets/owner/set/revision/main"]
    page.faults = [refuse(403, X_Error_Code="GatedRepo")]
    with pytest.raises(errors.DeniedError) as caught:
        bring("hf://datasets/owner/set")
    assert "accept" in (caught.value.advice or "")


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, bring: Bring) -> None:
    for path in ("revision/main", f"tree/{NEW}"):
        hub.web.pages[f"/api/datasets/owner/set/{path}"].faults = [refuse(503)]
    hub.web.pages[f"/datasets/owner/set/resolve/{NEW}/README.md"].faults = [refuse(429)]
    assert content(bring("hf://datasets/owner/set").path) == FILES


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("hf://datasets/owner/none", errors.NotFoundError),
        ("hf://datasets/owner/set@none", errors.NotFoundError),
        ("hf://datasets/owner/set/none", errors.NotFoundError),
        ("hf://set", errors.UnresolvableError),
        ("hf://spaces/owner/app", errors.FetchError),
        ("hf://datasets/../set", errors.UnresolvableError),
        ("hf://owner/model?token=hf_x", errors.UnresolvableError),
    ],
)
def test_what_is_not_there_says_so(
    hub: Hub, bring: Bring, uri: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bring(uri)


def test_a_hostile_listing_leads_nowhere(hub: Hub, bring: Bring) -> None:
    hub.files["../../evil"] = b"x"
    with pytest.raises(errors.PathError):
        bring("hf://datasets/owner/set")


def test_a_hub_that_does_not_answer_is_said_so(
    bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(errors.NetworkError):
        bring("hf://datasets/owner/set")


def test_a_process_that_has_imported_nothing_else_of_the_library_can_fetch(hub: Hub) -> None:
    code = (
        "from aicert.agent.fetch import InputRequest, resolve;"
        "print(resolve(InputRequest('it', 'hf://datasets/owner/set'), base=None).revision)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.web.url},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout.strip() == NEW, done.stderr
