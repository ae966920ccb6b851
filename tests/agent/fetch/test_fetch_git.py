"""Promises about git inputs, kept against real repositories, on the disk and over HTTP."""

import base64
import hashlib
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aicert.agent.fetch import InputRequest, errors, resolve
from tests.agent.fetch.conftest import QUICK, Bring, content
from tests.agent.fetch.web import Page, Web, refuse

GIT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "Ada" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "ada@example.org" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
}


class Repository:
    """A repository to fetch from."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.uri = f"git+file://{path}"
        path.mkdir()
        self.git("init", "-q", "-b", "main", *options)

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.path, env=GIT, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, **files: bytes | str) -> str:
        for name, data in files.items():
            path = self.path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "why")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_a_branch_becomes_the_commit_that_it_names_now(
    repository: Repository, bring: Bring
) -> None:
    commit = repository.commit(train="x = 1\n", lib__a="a")
    got = bring(repository.uri, revision="main")
    assert content(got.path) == {"train": b"x = 1\n", "lib/a": b"a"}
    assert got.resolved.git_commit == got.resolved.revision == commit
    assert got.resolved.uri == f"{repository.uri}@{commit}"
    assert got.resolved.requested == repository.uri
    assert got.manifest.files[1].sha256 == hashlib.sha256(b"x = 1\n").hexdigest()


def test_without_a_revision_the_default_branch_is_meant(
    repository: Repository, bring: Bring
) -> None:
    commit = repository.commit(a="1")
    assert bring(repository.uri).resolved.git_commit == commit


@pytest.mark.parametrize("form", ["v1", "refs/tags/v1"])
@pytest.mark.parametrize("annotated", [True, False])
def test_a_tag_becomes_its_commit_also_when_annotated(
    repository: Repository, bring: Bring, annotated: bool, form: str
) -> None:
    commit = repository.commit(a="1")
    repository.git("tag", *(["-a", "-m", "why"] if annotated else []), "v1")
    repository.commit(a="2")
    got = bring(repository.uri, revision=form)
    assert (got.resolved.git_commit, content(got.path)) == (commit, {"a": b"1"})


def test_an_old_commit_can_be_named_in_the_uri(repository: Repository, bring: Bring) -> None:
    commit = repository.commit(a="1")
    repository.commit(a="2")
    assert content(bring(f"{repository.uri}@{commit}").path) == {"a": b"1"}


def test_a_commit_that_is_not_there_says_so(repository: Repository, bring: Bring) -> None:
    repository.commit(a="1")
    with pytest.raises(errors.UnresolvableError):
        bring(repository.uri, revision="0123456789" * 4)


@pytest.mark.parametrize("revision", ["nothing", "0123abc", "--upload-pack=touch${IFS}x", "ma*"])
def test_a_name_that_is_no_branch_or_tag_says_so(
    repository: Repository, bring: Bring, revision: str
) -> None:
    repository.commit(a="1")
    with pytest.raises(errors.UnresolvableError):
        bring(repository.uri, revision=revision)


def test_a_name_that_means_two_commits_is_refused(repository: Repository, bring: Bring) -> None:
    repository.commit(a="1")
    repository.git("tag", "both")
    repository.commit(a="2")
    repository.git("branch", "both")
    with pytest.raises(errors.UnresolvableError):
        bring(repository.uri, revision="both")


def test_a_tag_of_something_else_than_a_commit_is_refused(
    repository: Repository, bring: Bring
) -> None:
    repository.commit(a="1")
    repository.git("tag", "blob", repository.git("rev-parse", "HEAD:a"))
    with pytest.raises(errors.FetchError):
        bring(repository.uri, revision="blob")


def test_a_revision_in_two_places_must_agree(repository: Repository, bring: Bring) -> None:
    with pytest.raises(errors.UnresolvableError):
        bring(f"{repository.uri}@main", revision="other")


def test_a_subdirectory_comes_alone(repository: Repository, bring: Bring) -> None:
    commit = repository.commit(top="t", sub__deep__a="a")
    with pytest.raises(errors.UnresolvableError):
        bring(f"{repository.uri}#subdirectory=none")
    got = bring(f"{repository.uri}#subdirectory=sub/deep")
    assert content(got.path) == {"a": b"a"}
    assert got.resolved.uri == f"{repository.uri}@{commit}#subdirectory=sub/deep"


def test_the_content_is_what_was_committed_whatever_attributes_say(
    repository: Repository, bring: Bring, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    attributes = "* text eol=crlf ident filter=evil\nsecret export-ignore\nsub export-subst\n"
    repository.commit(**{".gitattributes": attributes}, a="$Id$\n", secret="s", sub="$Format:%H$\n")
    repository.git("config", "filter.evil.smudge", f"touch {marker}")
    repository.git("config", "filter.evil.required", "true")
    assert content(bring(repository.uri).path) == {
        ".gitattributes": attributes.encode(),
        "a": b"$Id$\n",
        "secret": b"s",
        "sub": b"$Format:%H$\n",
    }
    assert not marker.exists()


def test_no_hook_and_no_configuration_of_the_user_comes_into_play(
    repository: Repository, bring: Bring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit(a="1")
    marker = tmp_path / "ran"
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    for hook in ("post-checkout", "reference-transaction", "post-fetch"):
        (template / hook).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (template / hook).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f"[init]\n templateDir = {template.parent}\n[core]\n hooksPath = {template}\n"
        f'[url "file:///nowhere"]\n insteadOf = file://{repository.path}\n'
    )
    elsewhere = Repository(tmp_path / "elsewhere")
    elsewhere.git("config", "url.file:///nowhere.insteadOf", f"file://{repository.path}")
    monkeypatch.chdir(elsewhere.path)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.file:///nowhere.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"file://{repository.path}")
    assert content(bring(repository.uri).path) == {"a": b"1"}
    assert not marker.exists()


@pytest.mark.parametrize("target", ["a", "../outside", "/etc/passwd"])
def test_a_symbolic_link_is_refused_wherever_it_leads(
    repository: Repository, bring: Bring, target: str, tmp_path: Path
) -> None:
    repository.commit(a="1")
    (repository.path / "link").symlink_to(target)
    repository.commit()
    with pytest.raises(errors.LinkError) as caught:
        bring(repository.uri)
    assert caught.value.got == "link"
    assert not (tmp_path / "into").exists()


def test_a_submodule_is_refused_by_name(repository: Repository, bring: Bring) -> None:
    commit = repository.commit(a="1")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendor/lib")
    repository.git("commit", "-q", "-m", "why")
    with pytest.raises(errors.LinkError) as caught:
        bring(repository.uri)
    assert caught.value.got == "vendor/lib"


def test_a_pointer_to_lfs_is_refused_and_says_what_to_do(
    repository: Repository, bring: Bring, tmp_path: Path
) -> None:
    repository.commit(
        **{"model.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"}
    )
    with pytest.raises(errors.LinkError) as caught:
        bring(repository.uri)
    assert caught.value.got == "model.bin"
    assert "hf" in (caught.value.advice or "")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("name", [b"a\\b", b"C:x", b"e\xcc\x81", b"\xff", b"a\nb"])
def test_a_hostile_name_in_a_tree_is_refused(
    repository: Repository, bring: Bring, name: bytes
) -> None:
    blob = repository.git("hash-object", "-w", os.devnull)
    tree = subprocess.run(
        ["git", "mktree", "-z"], cwd=repository.path, env=GIT, check=True, capture_output=True,
        input=b"100644 blob " + blob.encode() + b"\t" + name + b"\0",
    ).stdout.decode().strip()  # fmt: skip
    commit = repository.git("commit-tree", tree, "-m", "why")
    repository.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(errors.PathError):
        bring(repository.uri)


def test_dots_in_a_hand_made_tree_do_not_lead_out(
    repository: Repository, bring: Bring, tmp_path: Path
) -> None:
    # git itself makes no such tree: write the object by hand.
    blob = bytes.fromhex(repository.git("hash-object", "-w", os.devnull))
    tree = b"100644 ..\0" + blob
    made = subprocess.run(
        ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        cwd=repository.path, env=GIT, check=True, capture_output=True, input=tree,
    ).stdout.decode().strip()  # fmt: skip
    commit = repository.git("commit-tree", made, "-m", "why")
    repository.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(errors.FetchError):
        bring(repository.uri)
    assert not (tmp_path / "into").exists()


def test_many_files_and_large_ones_come_right(repository: Repository, bring: Bring) -> None:
    files: dict[str, bytes | str] = {f"d__{i}": f"{i}\n" * i for i in range(300)}
    files["large"] = os.urandom(5 << 20)
    repository.commit(**files)
    got = bring(repository.uri, jobs=4)
    assert content(got.path) == {
        name.replace("__", "/"): data.encode() if isinstance(data, str) else data
        for name, data in files.items()
    }


def test_a_repository_that_sends_too_much_is_stopped(repository: Repository, bring: Bring) -> None:
    repository.commit(large=os.urandom(3 << 20))
    with pytest.raises(errors.TooLargeError, match="sends too much"):
        bring(repository.uri, max_bytes=1 << 20)


def test_a_repository_of_too_many_files_is_refused(repository: Repository, bring: Bring) -> None:
    repository.commit(a="1", b="2")
    with pytest.raises(errors.TooLargeError):
        bring(repository.uri, max_files=1)


def test_a_few_objects_that_stand_for_billions_of_files_are_refused_at_once(
    repository: Repository, bring: Bring
) -> None:
    inner = repository.git("hash-object", "-w", os.devnull)
    kind = "100644 blob"
    for _ in range(10):
        lines = "".join(f"{kind} {inner}\t{name}\n" for name in range(10))
        inner = subprocess.run(
            ["git", "mktree"], cwd=repository.path, env=GIT, check=True, capture_output=True,
            input=lines.encode(),
        ).stdout.decode().strip()  # fmt: skip
        kind = "040000 tree"
    commit = repository.git("commit-tree", inner, "-m", "why")
    repository.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(errors.TooLargeError):
        bring(repository.uri, max_files=1000)


def test_repositories_of_sha256_work(tmp_path: Path, bring: Bring) -> None:
    repository = Repository(tmp_path / "r256", "--object-format=sha256")
    commit = repository.commit(a="1")
    assert len(commit) == 64
    assert bring(repository.uri).resolved.git_commit == commit


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository away")
def test_a_repository_of_somebody_else_is_refused_with_what_to_do(
    repository: Repository, bring: Bring, tmp_path: Path
) -> None:
    for path in (repository.path, *repository.path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    with pytest.raises(errors.DeniedError, match="belongs to somebody else") as caught:
        bring(repository.uri)
    assert "git clone --bare" in (caught.value.advice or "")


def test_a_folder_that_is_no_repository_says_so(tmp_path: Path, bring: Bring) -> None:
    with pytest.raises(errors.NotFoundError):
        bring(f"git+file://{tmp_path}/nothing")


def test_a_relative_repository_starts_at_the_base(repository: Repository, bring: Bring) -> None:
    commit = repository.commit(a="1")
    got = bring("git+file:repository@main")
    assert got.resolved.uri == f"git+file:repository@{commit}"


def test_an_extra_transport_is_no_scheme(bring: Bring) -> None:
    for uri in ("git+ext::sh -c true", "ext::sh -c true", "git+ssh://git@host/x"):
        with pytest.raises(errors.SchemeError):
            bring(uri)


class Host(ThreadingHTTPServer):
    """A host of repositories: git's own HTTP back end behind a small CGI."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Cgi)
        self.root = root
        self.token: str | None = None
        self.failures: list[int] = []
        self.seen: list[str] = []
        self.waits: Callable[[], object] = lambda: None
        self.uri = f"git+http://127.0.0.1:{self.server_address[1]}"


class Cgi(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.seen.append(self.path)
        self.server.waits()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic "))
        status = self.server.failures.pop(0) if self.server.failures else 0
        if self.server.token and not given.endswith(f":{self.server.token}".encode()):
            status = 401
        if status:
            self.send_response(status)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        environment = {
            **GIT,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], env=environment, input=body, capture_output=True, check=False
        )
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def host(tmp_path: Path, repository: Repository) -> Iterator[Host]:
    repository.commit(a="1")
    with Host(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_repository_comes_over_http(host: Host, repository: Repository, bring: Bring) -> None:
    commit = repository.commit(a="2")
    got = bring(f"{host.uri}/repository/.git", revision="main")
    assert content(got.path) == {"a": b"2"}
    assert got.resolved.uri == f"{host.uri}/repository/.git@{commit}"


def test_an_old_commit_comes_over_http_by_its_id(
    host: Host, repository: Repository, bring: Bring
) -> None:
    commit = repository.git("rev-parse", "HEAD")
    repository.commit(a="2")
    assert content(bring(f"{host.uri}/repository/.git@{commit}").path) == {"a": b"1"}


def test_a_private_repository_asks_for_the_token_and_takes_it(
    host: Host, bring: Bring, tmp_path: Path
) -> None:
    host.token = "t0p-secret"
    with pytest.raises(errors.DeniedError):
        bring(f"{host.uri}/repository/.git")
    with pytest.raises(errors.DeniedError) as caught:
        bring(f"{host.uri}/repository/.git", secrets={"token": "wr0ng-secret"})
    assert "wr0ng" not in caught.value.diagnostics()
    got = bring(f"{host.uri}/repository/.git", secrets={"token": "t0p-secret"})
    assert content(got.path) == {"a": b"1"}
    assert "t0p-secret" not in repr(got)


def test_a_host_that_is_down_for_a_moment_is_tried_again(host: Host, bring: Bring) -> None:
    host.failures = [503, 429]
    assert content(bring(f"{host.uri}/repository/.git").path) == {"a": b"1"}


def test_https_does_not_fall_back_to_http(
    host: Host,
    bring: Bring,
    tls: Callable[[bool], ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Web(tls(True)) as safe:
        there = f"{host.uri.removeprefix('git+')}/repository/.git/info/refs?service=git-upload-pack"
        safe.pages["*"] = Page(b"", always=refuse(302, Location=there))
        monkeypatch.setenv("GIT_SSL_CAINFO", str(tmp_path / "tls.crt"))
        with pytest.raises(errors.FetchError):
            bring(f"git+{safe.url}/repository/.git")
        assert safe.asked
        assert not host.seen


def test_a_token_does_not_follow_a_redirect(host: Host, bring: Bring, web: Web) -> None:
    there = f"{host.uri.removeprefix('git+')}/repository/.git/info/refs?service=git-upload-pack"
    web.pages["*"] = Page(b"", always=refuse(302, Location=there))
    with pytest.raises(errors.FetchError):
        bring(f"git+{web.url}/repository/.git", secrets={"token": "t0p-secret"})
    assert web.asked[0].headers["authorization"].startswith("Basic ")
    assert not host.seen


def test_a_transfer_that_hangs_can_be_cancelled(host: Host, bring: Bring) -> None:
    cancelled = threading.Event()
    release = threading.Event()

    def wait() -> None:
        cancelled.set()
        release.wait(60)

    host.waits = wait
    try:
        with pytest.raises(errors.CancelledError):
            bring(f"{host.uri}/repository/.git", cancelled=cancelled)
    finally:
        release.set()


def test_a_repository_that_is_not_there_is_asked_for_once(host: Host, bring: Bring) -> None:
    with pytest.raises(errors.NotFoundError):
        bring(f"{host.uri}/nothing/.git")
    assert len(host.seen) == 1


def test_a_credential_in_the_uri_is_refused(bring: Bring) -> None:
    with pytest.raises(errors.CredentialsError) as caught:
        bring("git+https://ghp_0123456789abcdef@example.invalid/owner/repo")
    assert "ghp_" not in caught.value.diagnostics()


def test_without_git_the_error_says_what_to_install(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.MissingExtraError) as caught:
        resolve(InputRequest("it", repository.uri), base=tmp_path, retry=QUICK)
    assert "apt install git" in (caught.value.advice or "")


def test_no_process_is_left_behind(repository: Repository, bring: Bring) -> None:
    repository.commit(a="1")
    bring(repository.uri)
    me = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    left = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in me]
    assert b"git" not in left
    assert shutil.which("git")
