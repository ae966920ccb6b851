"""Inputs from the Hugging Face Hub: `hf://[datasets/]owner/name[@revision][/path]`.

The Hub's own library turns a branch or tag into a commit and lists that commit; the files come
over HTTP in ranges from the address that names the commit. The Hub's word for the commit is not
checked against the content, so it is a revision to us and not a git commit; where the Hub states
a file's SHA-256 (LFS, Xet), that is checked.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from aicert.agent.fetch.errors import (
    DeniedError,
    FetchError,
    NetworkError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnresolvableError,
    from_status,
)
from aicert.agent.fetch.http import Client
from aicert.agent.fetch.source import (
    HUB_URI,
    InputRequest,
    Kind,
    RemoteFile,
    Resolved,
    Retry,
    Source,
    need,
    pick_revision,
)

_HUB = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def library() -> Any:
    """Return the Hub's library, told to tell nobody who trains on what, or pushes with what.

    Raises:
        MissingExtraError: it is not installed.
    """
    # By its full name: `huggingface_hub.constants` is there once something has imported it.
    constants: Any = need("huggingface_hub.constants", "hf")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return need("huggingface_hub", "hf")


class HubSource(Source):
    """A model or data set, a folder of one, or one file of one."""

    def __init__(
        self, request: InputRequest, secrets: Mapping[str, object], retry: Retry, max_files: int
    ) -> None:
        """Resolve the revision to a commit and list it.

        Raises:
            FetchError: it cannot be resolved or listed.
        """
        match = HUB_URI.fullmatch(request.uri)
        if match is None:
            raise UnresolvableError(
                "this is not the URI of a model or data set on the Hub",
                got=request.uri,
                expected="hf://owner/name[@revision][/path], hf://datasets/owner/name...",
                advice="take owner/name from the Hub's page; write a revision's '/' as %2F",
            )
        kind, name, in_uri, path = match.groups()
        prefix = "datasets/" if kind == "datasets" else ""
        revision = pick_revision(request, unquote(in_uri) if in_uri else None) or "main"
        token = str(secrets.get("token") or "")
        endpoint = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
        self._client = Client(endpoint, {"Authorization": f"Bearer {token}"} if token else {})
        # Without a token of its own an input is read anonymously: `False` keeps the library from
        # using one that lies about on this machine.
        api = library().HfApi(endpoint=endpoint, token=token or False)
        repo_type = "dataset" if prefix else "model"
        where = {"repo_id": name, "repo_type": repo_type}
        info = retry(lambda: _ask(lambda: api.repo_info(revision=revision, **where)))
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit):
            raise UnresolvableError("the Hub names no commit", got=commit, expected="40 hex digits")
        entries = retry(lambda: _ask(lambda: _list(api, where, commit, max_files)))
        wanted = (path or "").strip("/")
        url = f"{endpoint}/{prefix}{name}/resolve/{commit}/"
        tree = [
            _entry(entry, entry.path.removeprefix(f"{wanted}/"), url)
            for entry in entries
            if not wanted or entry.path.startswith(f"{wanted}/")
        ]
        files = tree or [
            _entry(entry, entry.path.rpartition("/")[2], url)
            for entry in entries
            if entry.path == wanted
        ]
        if not files:
            raise NotFoundError("the Hub has no such file at this revision", got=request.uri)
        form: Kind = "tree" if tree else "file"
        uri = f"hf://{prefix}{name}@{commit}{f'/{wanted}' if wanted else ''}"
        # What is recorded must be true: another Hub than the one that everybody knows is named.
        uri += "" if endpoint == _HUB else f"?endpoint={endpoint}"
        self.resolved = Resolved("hf", uri, request.uri, commit, None, form, tuple(files))

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Yield bytes of a file; its address names the commit, so there is no tag to compare."""
        return self._client.read(file.key, start, end, size=file.size, etag=None)

    def interrupt(self) -> None:
        """Cut all connections."""
        self._client.interrupt()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def _entry(entry: Any, path: str, url: str) -> RemoteFile:
    sha256 = str(entry.lfs.sha256) if entry.lfs else None
    return RemoteFile(path, int(entry.size), str(entry.blob_id), sha256, url + quote(entry.path))


def _list(api: Any, where: Mapping[str, str], commit: str, max_files: int) -> list[Any]:
    found: list[Any] = []
    for entry in api.list_repo_tree(revision=commit, recursive=True, **where):
        if hasattr(entry, "blob_id"):  # a file; folders have a tree_id
            found.append(entry)
        if len(found) > max_files:
            raise TooLargeError("the repository holds too many files", expected=max_files)
    return found


def _ask(action: Any) -> Any:
    """Call the Hub's library and turn its errors, which may show headers, into ours."""
    known = need("huggingface_hub.errors", "hf")
    try:
        return action()
    except FetchError:
        raise
    except known.GatedRepoError:
        problem: FetchError = DeniedError(
            "the Hub asks for its terms to be accepted first",
            advice="accept them on the Hub's page and give a token of that account",
        )
    except known.RepositoryNotFoundError:
        problem = NotFoundError(
            "the Hub has no such repository, or does not show it to us",
            advice="check owner/name and datasets/; for a private one give a token",
        )
    except known.RevisionNotFoundError:
        problem = NotFoundError(
            "the repository has no such revision", advice="name a branch, a tag or a commit"
        )
    except known.HfHubHTTPError as error:
        problem = from_status(error.response.status_code, "the Hub")
    except Exception as error:
        # The library's HTTP client has changed its name more than once, but not its classes.
        names = {kind.__name__ for kind in type(error).__mro__}
        got = f"{type(error).__name__}: {error}"
        problem = NetworkError("the Hub's answer cannot be read", got=got)
        if names & {"TransportError", "ConnectionError"}:
            problem = TransientError("the Hub cannot be reached", got=got)
    raise problem
