"""Inputs from git: `git+https://host/path[@revision][#subdirectory=path]`, also git+http, git+file.

The git binary resolves a branch or tag to a commit, fetches that commit alone into an empty bare
repository, and hands out its blobs as they are stored. There is no checkout: no hook, filter,
attribute or submodule comes into play. git checks every object against its id, so the content is
bound to the commit as firmly as the repository's hash function allows; our own SHA-256 stands
beside it.
"""

import base64
import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlunsplit

from aicert.agent.fetch.errors import (
    CancelledError,
    DeniedError,
    FetchError,
    LinkError,
    MissingExtraError,
    NetworkError,
    NotFoundError,
    PathError,
    TooLargeError,
    TransientError,
    UnresolvableError,
)
from aicert.agent.fetch.source import (
    InputRequest,
    RemoteFile,
    Resolved,
    Retry,
    Source,
    pick_revision,
    refuse_clear_text,
    refuse_credentials,
    split,
)

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_PIECE = 1 << 20
_TICK = 0.2
_MAX_ENTRY = 8192
_ENTRY = re.compile(rb"(\d{6}) (\w+) ([0-9a-f]+) +(\d+|-)\t(.+)", re.DOTALL)


class GitSource(Source):
    """The tree of one commit."""

    def __init__(
        self,
        request: InputRequest,
        base: Path,
        secrets: Mapping[str, object],
        retry: Retry,
        max_files: int,
    ) -> None:
        """Ask the repository which commit is meant.

        Raises:
            FetchError: it cannot be reached, or names no such commit.
        """
        parts = split(request.uri)
        refuse_credentials(parts)
        self._retry, self._max_files = retry, max_files
        self._home = tempfile.TemporaryDirectory(prefix="aicert-git-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        transport = parts.scheme.removeprefix("git+")
        path, _, in_uri = parts.path.rpartition("@") if "@" in parts.path else (parts.path, "", "")
        self._subfolder = parse_qs(parts.fragment).get("subdirectory", [""])[0].strip("/")
        if parts.query or (parts.fragment and not self._subfolder):
            raise UnresolvableError(
                "this is not the URI of a repository",
                got=request.uri,
                expected="git+https://host/path[@revision][#subdirectory=path]",
            )
        if transport == "file":
            self._url = f"file://{quote(str(base.absolute() / unquote(path)))}"
        else:
            self._url = urlunsplit((transport, parts.netloc, path, "", ""))
        self._environment = _environment(self._home.name, transport, split(self._url), secrets)
        try:
            commit = self._resolve(pick_revision(request, in_uri))
        except BaseException:
            self.close()
            raise
        place = request.uri.partition("#")[0].removesuffix(f"@{in_uri}" if in_uri else "")
        fragment = f"#subdirectory={self._subfolder}" if self._subfolder else ""
        uri = f"{place}@{commit}{fragment}"
        self.resolved = Resolved("git", uri, request.uri, commit, commit, "tree")

    def prepare(self, scratch: Path, max_bytes: int) -> None:
        """Fetch the commit into `scratch` and list its tree.

        Raises:
            LinkError: the tree holds a symbolic link or a submodule.
            TooLargeError: what the repository sends is larger than `max_bytes`.
        """
        commit = self.resolved.git_commit or ""
        self._repository = scratch / "repository"
        self._retry(lambda: self._fetch(commit, max_bytes))
        found = self._git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
        if found != commit:
            raise UnresolvableError("the revision is not a commit", got=found, expected=commit)
        tree = f"{commit}:{self._subfolder}" if self._subfolder else commit
        files = []
        for entry in self._list(tree):
            files.append(_entry(entry))
            if len(files) > self._max_files:
                raise TooLargeError("the commit holds too many files", expected=self._max_files)
        self.resolved = replace(self.resolved, files=tuple(files))

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Yield the bytes of a blob, always the whole of it."""
        del start, end
        process = self._reader()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(file.key.encode() + b"\n")
        process.stdin.flush()
        header = process.stdout.readline()
        if header.split() != [file.key.encode(), b"blob", str(file.size).encode()]:
            raise NetworkError(f"{file.path}: git cannot read it", got=header)
        left = file.size or 0
        while left:
            piece = process.stdout.read(min(left, _PIECE))
            if not piece:
                raise NetworkError(f"{file.path}: git stopped while sending it")
            if left == file.size and piece.startswith(_LFS):
                raise LinkError(
                    "the repository holds a Git LFS pointer, not the file itself",
                    got=file.path,
                    advice="give the file as an input of its own (hf, https, or an object store)",
                )
            left -= len(piece)
            yield piece
        process.stdout.read(1)  # the line end that git puts after each blob
        self._idle.put(process)

    def close(self) -> None:
        """End the git processes."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._home.cleanup()

    def _list(self, tree: str) -> Iterator[bytes]:
        """Yield the entries of a tree one by one: a few small objects can stand for billions."""
        command = ["git", "--git-dir", str(self._repository)]
        command += ["ls-tree", "-r", "-z", "-l", "--full-tree", tree]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                rest = b""
                while piece := os.read(process.stdout.fileno(), _PIECE):
                    *entries, rest = (rest + piece).split(b"\0")
                    yield from entries
                    if len(rest) > _MAX_ENTRY:
                        raise PathError("a path in the repository is too long", got=rest[:100])
                problem = process.stderr.read(1000)
            finally:
                process.kill()
        if process.returncode > 0:
            raise _problem(problem.decode("utf-8", "replace"))

    def _reader(self) -> subprocess.Popen[bytes]:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            command = ["git", "--git-dir", str(self._repository), "cat-file", "--batch"]
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._processes.append(process)
            return process

    def _resolve(self, revision: str | None) -> str:
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        names = ["HEAD"]
        if revision is not None:
            names = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
            names += [revision] if revision.startswith("refs/") else []
        # An annotated tag has an object of its own; the name with ^{} is the commit it stands for.
        names += [f"{name}^{{}}" for name in names]
        answer = self._retry(lambda: self._git("ls-remote", "--", self._url, *names, remote=True))
        lines = [line.split("\t", 1) for line in answer.decode("utf-8", "replace").splitlines()]
        found = {name: commit for commit, name in lines}
        commits = {found.get(f"{name}^{{}}", found[name]) for name in names if name in found}
        if len(commits) != 1:
            raise UnresolvableError(
                "the repository has no such branch or tag"
                if not commits
                else "a branch and a tag have this name, at different commits",
                got=revision or "HEAD",
                advice="name a branch, a tag (refs/tags/...) or a full commit id",
            )
        return commits.pop()

    def _fetch(self, commit: str, max_bytes: int) -> None:
        shutil.rmtree(self._repository, ignore_errors=True)
        self._repository.mkdir(parents=True)
        form = "sha256" if len(commit) == 64 else "sha1"
        self._git("init", "-q", "--bare", "--template=", f"--object-format={form}")
        options = ["-q", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
        fetch = ["fetch", *options]
        try:
            self._git(*fetch, "--depth=1", "--", self._url, commit, remote=True, limit=max_bytes)
        except UnresolvableError:
            # Some servers send no commit that is not the tip of a branch: take all branches.
            everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            self._git(*fetch, "--", self._url, *everything, remote=True, limit=max_bytes)

    def _git(self, *arguments: str, remote: bool = False, limit: int | None = None) -> bytes:
        where = [] if remote and limit is None else ["--git-dir", str(self._repository)]
        return self._run(["git", *where, *arguments], limit)

    def _run(self, command: list[str], limit: int | None = None) -> bytes:
        try:
            with subprocess.Popen(
                command,
                cwd=self._home.name,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as process:
                try:
                    if limit is not None:
                        # No pack larger than this; git's own children inherit it.
                        with suppress(ProcessLookupError):
                            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
                    output, errors = self._communicate(process)
                except BaseException:
                    # With the helpers that it has started.
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
        except FileNotFoundError as error:
            raise MissingExtraError(
                "the program git is not installed", advice="install it: apt install git"
            ) from error
        if process.returncode:
            if limit is not None and self._holds_a_file_of(limit):
                raise TooLargeError("the repository sends too much", expected=f"{limit} bytes")
            raise _problem(errors.decode("utf-8", "replace").strip())
        return output

    def _communicate(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        while True:
            try:
                return process.communicate(timeout=_TICK)
            except subprocess.TimeoutExpired:
                if self._retry.stop.is_set():
                    raise CancelledError("the fetch was cancelled") from None

    def _holds_a_file_of(self, size: int) -> bool:
        """Tell whether git was stopped by the limit: its message is that of any broken pack."""
        files = self._repository.rglob("*")
        return any(path.is_file() and path.stat().st_size >= size for path in files)


def _environment(
    home: str, transport: str, url: SplitResult, secrets: Mapping[str, object]
) -> dict[str, str]:
    """Return an environment in which nothing but this module configures git."""
    keep = ["PATH", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "http_proxy"]
    keep += ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"]
    settings = {
        "core.hooksPath": os.devnull,
        "credential.helper": "",
        "fetch.unpackLimit": "1",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "protocol.version": "2",
        # Give up on a server that sends less than 1 kB/s for a minute.
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "60",
    }
    if token := secrets.get("token"):
        refuse_clear_text(url)
        # The hosts of git repositories take a token as the password of any user. It goes by the
        # environment, as other users can read a command line, and to this host alone.
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        origin = f"{url.scheme}://{url.netloc}/"
        settings[f"http.{origin}.extraHeader"] = f"Authorization: Basic {basic}"
        settings["http.followRedirects"] = "false"
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {
        "HOME": home,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        # Exactly one transport: no redirect to another, no ext:: or other helper.
        "GIT_ALLOW_PROTOCOL": transport,
        # Nor a repository that this runs inside of.
        "GIT_CEILING_DIRECTORIES": os.path.dirname(home),
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (name, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def _entry(line: bytes) -> RemoteFile:
    match = _ENTRY.fullmatch(line)
    if match is None:
        raise NetworkError("git lists a tree in a way that we do not know", got=line[:100])
    mode, kind, identity, size, name = match.groups()
    path = name.decode("utf-8", "surrogateescape")
    if mode == b"120000":
        raise LinkError(
            "the repository holds a symbolic link",
            got=path,
            advice="replace it with the file itself, or name a subdirectory without it",
        )
    if kind != b"blob":
        raise LinkError(
            "the repository holds a submodule, whose content the commit does not hold",
            got=path,
            advice="give the submodule's repository as an input of its own",
        )
    return RemoteFile(path, int(size), identity.decode(), key=identity.decode(), ranged=False)


def _problem(said: str) -> FetchError:
    """Return the error for what git says on failing, in the language that LC_ALL=C gives."""
    text = said.lower()
    got = said[-300:]
    for marks, problem in (
        (
            ("dubious ownership",),
            DeniedError(
                "the repository belongs to somebody else than this agent's user: git, which would "
                "obey the settings in it, refuses it",
                got=got,
                advice="name a copy that belongs to the agent's user (git clone --bare PLACE COPY; "
                "chown -R root: COPY), or an address with git+https:",
            ),
        ),
        (_DENIED, DeniedError("the repository refuses access", got=got, advice=_ADVICE)),
        (_MISSING, NotFoundError("there is no such repository", got=got, advice=_ADVICE)),
        (_UNKNOWN, UnresolvableError("the repository has no such commit or folder", got=got)),
        (_BROKEN, TransientError("the repository cannot be reached", got=got)),
    ):
        if any(mark in text for mark in marks):
            return problem
    return NetworkError("git fails", got=got)


_ADVICE = "check the URI; for a private repository give a token as a secret of this input"
_DENIED = (
    "authentication failed",
    "could not read username",
    "returned error: 401",
    "returned error: 403",
    "permission denied",
)
_MISSING = (
    "does not appear to be a git repository",
    "returned error: 404",
    "not found",
    "no such file or directory",
)
_UNKNOWN = (
    "not our ref",
    "unadvertised object",
    "couldn't find remote ref",
    "unknown revision",
    "not a valid object name",
    "needed a single revision",
    "bad object",
)
_BROKEN = (
    "could not resolve host",
    "failed to connect",
    "couldn't connect",
    "connection",
    "timed out",
    "early eof",
    "hung up",
    "rpc failed",
    "returned error: 429",
    "returned error: 5",
    "too slow",
)
