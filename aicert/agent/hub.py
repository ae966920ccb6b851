"""Push a certified model to a repository of the Hugging Face Hub, in one commit.

Beside the weights go the certificate, `model.sig` and the card as README. What does not verify is
not pushed, and a commit stands whole or not at all: whoever reads the repository never sees half a
model. The Hub's own library does the talking; what it says is compared with the certificate.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aicert import card, hub, oms
from aicert.agent.fetch import hf
from aicert.agent.fetch.errors import redact
from aicert.agent.fetch.source import need
from aicert.certificate import Certificate
from aicert.errors import Error
from aicert.hub import CARD, CERTIFICATE, README, DeniedError, HubError
from aicert.manifest import check_collisions
from aicert.verify import Verdict
from aicert.words import clean, count

_RESERVED = frozenset({CERTIFICATE, oms.NAME, ".gitattributes", ".gitignore"})
_SETTINGS = ".gitattributes"


class NameTakenError(HubError):
    """An output of the training has a name that the repository needs for something else."""

    code = "hub.name-taken"


class OthersError(HubError):
    """The repository holds files that are none of the model's."""

    code = "hub.other-files"


class PublicError(HubError):
    """The repository is public, and a private one was asked for."""

    code = "hub.public"


class MovedError(HubError):
    """Somebody else has committed to the repository meanwhile."""

    code = "hub.moved"


class UnavailableError(HubError):
    """The Hub cannot be reached, or is not well."""

    code = "hub.unavailable"


class AlteredError(HubError):
    """The Hub lists something else than what was pushed."""

    code = "hub.altered"


class NotCheckedError(HubError):
    """The model's files have not been verified."""

    code = "hub.not-verified"


@dataclass(frozen=True, slots=True)
class _File:
    """What is to stand at a path: where it is now, and its SHA-256 (hex)."""

    source: bytes | Path
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "_File":
        return cls(data, hashlib.sha256(data).hexdigest())

    def blob(self) -> str | None:
        """Return git's name for this content, or None where the file has another one by now.

        The Hub keeps small files in git, and then tells this name instead of the SHA-256.
        """
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            return None
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model in a repository: its `commit`, and whether that is a `new` one."""

    repository: str
    commit: str
    url: str
    new: bool

    @property
    def uri(self) -> str:
        """What `aicert verify` takes."""
        return f"{hub.SCHEME}{self.repository}@{self.commit}"


def push(
    repository: str,
    data: bytes,
    verdict: Verdict,
    folder: Path,
    signature: bytes,
    *,
    token: str | None = None,
    private: bool = False,
    replace: bool = False,
    endpoint: str | None = None,
) -> Pushed:
    """Push a model to `repository` (`owner/name`), which is made where there is none.

    Pushing the same again changes nothing, and finds out what became of a push whose answer was
    lost. Weights that the Hub has already are not sent again.

    Args:
        repository: where to.
        data: the certificate file.
        verdict: of that certificate, with the files of `folder`.
        folder: the model's files.
        signature: the run's `model.sig`.
        token: of an account that may write there; by default the one that the Hub's library finds
            (`$HF_TOKEN`, `hf auth login`).
        private: make the repository private, and refuse one that is not.
        replace: remove files of the repository that are none of this model's.
        endpoint: the Hub's address; by default `$HF_ENDPOINT`, or the Hub that everybody knows.

    Raises:
        NotCheckedError: the verdict is another certificate's, or not about files.
        ModelSignatureError: the signature is not of this run.
        NameTakenError: an output has one of the names that the repository needs.
        PublicError, OthersError, MovedError: the repository is not fit for it.
        HubError: (another subclass) the Hub refuses, or cannot be reached.
    """
    hub.parse(f"{hub.SCHEME}{repository}")
    digest = hashlib.sha256(data).hexdigest()
    if verdict.model is None or verdict.certificate_digest != digest:
        raise NotCheckedError("the model was not verified", got=digest)
    oms.check(signature, verdict)
    contents = _contents(repository, data, verdict, folder, signature)

    library = hf.library()
    token = token or library.get_token()
    if token is None:
        raise DeniedError(
            "there is no token to push with",
            advice="make one that may write on the Hub's page of your settings; then set HF_TOKEN "
            "to it, or run `hf auth login`",
        )
    hub.check_token(token)
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or hub.HUB).rstrip("/")
    api = library.HfApi(endpoint=endpoint, token=token)
    with _explained(repository, token):
        api.create_repo(repository, private=private or None, exist_ok=True)
        info = api.repo_info(repository, revision="main")
        if private and not info.private:
            raise PublicError(
                "the repository is public, and a private one was asked for",
                got=repository,
                advice="make it private on the Hub's page, or name another",
            )
        parent = str(info.sha)
        listed = _listing(api, repository, parent)
    others = sorted(listed.keys() - contents.keys() - {_SETTINGS})
    if ".gitignore" in others or (others and not replace):
        raise OthersError(
            f"the repository holds {count(len(others), 'file')} that the certificate does not name",
            got=clean(", ".join(others[:5])),
            advice="name another repository; or --replace to remove them"
            if ".gitignore" not in others
            else "remove .gitignore first: the Hub leaves out of a commit what it names",
        )
    url = f"{endpoint}/{repository}"
    if not others and not _differing(listed, contents):
        return Pushed(repository, parent, f"{url}/tree/{parent}", new=False)
    operations = [
        *(library.CommitOperationAdd(path, file.source) for path, file in contents.items()),
        *(library.CommitOperationDelete(path, is_folder=False) for path in others),
    ]
    message = f"{clean(verdict.run.job.spec.name)}, with certificate sha256:{digest}"
    try:
        with _explained(repository, token):
            made = api.create_commit(
                repository, operations, commit_message=message, parent_commit=parent
            )
            commit = str(made.oid)
    except Error:
        # Its answer may have been lost, and the commit may stand.
        landed = _landed(api, repository, parent, contents, token)
        if landed is None:
            raise
        commit = landed
    with _explained(repository, token):
        listed = _listing(api, repository, commit)
    if differing := _differing(listed, contents):
        raise AlteredError(
            "the Hub lists something else than what was pushed",
            got=f"{commit}: {clean(', '.join(differing[:5]))}",
            advice="push again when nothing writes to the model's folder; until then the commit "
            "does not verify",
        )
    return Pushed(repository, commit, f"{url}/tree/{commit}", new=True)


def _contents(
    repository: str, data: bytes, verdict: Verdict, folder: Path, signature: bytes
) -> dict[str, _File]:
    """Return what the repository is to hold, by path."""
    outputs = {
        file.path: _File(folder / file.path, file.sha256)
        for file in verdict.run.outputs.manifest.files
    }
    # A README that the training wrote is certified and stays as it is.
    place = CARD if README in outputs else README
    if taken := outputs.keys() & (_RESERVED | {place}):
        raise NameTakenError(
            "an output has a name that the repository needs for something else",
            got=", ".join(sorted(taken)),
            advice="let the training write it under another name",
        )
    command = f"aicert verify {hub.SCHEME}{repository}"
    text = card.readme(Certificate.parse(data), command=command)
    contents = {
        **outputs,
        CERTIFICATE: _File.of(data),
        oms.NAME: _File.of(signature),
        place: _File.of(text.encode()),
    }
    check_collisions(list(contents))
    return contents


def _listing(api: Any, repository: str, commit: str) -> dict[str, tuple[str, str]]:
    """Return how the Hub identifies each file of a commit: by its SHA-256, or as a blob of git."""
    found: dict[str, tuple[str, str]] = {}
    for entry in api.list_repo_tree(repository, revision=commit, recursive=True):
        if hasattr(entry, "blob_id"):  # a file; folders have a tree_id
            lfs = entry.lfs
            found[str(entry.path)] = ("sha256", lfs.sha256) if lfs else ("git", entry.blob_id)
        if len(found) > hub.MAX_FILES:
            raise HubError("the repository lists too many files", expected=hub.MAX_FILES)
    return found


def _differing(listed: Mapping[str, tuple[str, str]], contents: Mapping[str, _File]) -> list[str]:
    """Return the paths at which a repository holds something else, nothing, or something more."""
    found = sorted(listed.keys() - contents.keys() - {_SETTINGS})
    for path, file in contents.items():
        kind, name = listed.get(path, ("sha256", ""))
        if name != (file.sha256 if kind == "sha256" else file.blob()):
            found.append(path)
    return found


def _landed(
    api: Any, repository: str, parent: str, contents: Mapping[str, _File], token: str
) -> str | None:
    """Return the commit that holds the whole model after all, if there is one."""
    try:
        with _explained(repository, token):
            head = str(api.repo_info(repository, revision="main").sha)
            if head == parent or _differing(_listing(api, repository, head), contents):
                return None
            return head
    except Error:
        return None


@contextmanager
def _explained(repository: str, token: str) -> Iterator[None]:
    """Turn the errors of the Hub's library, which may show what they like, into ours."""
    known = need("huggingface_hub.errors", "hf")
    try:
        yield
        return
    except Error:
        raise
    except known.RepositoryNotFoundError:
        problem: HubError = hub.NotFoundError(
            "the Hub has no such repository, or does not show it to you",
            got=repository,
            advice="check owner and name, and that the token may write there",
        )
    except known.HfHubHTTPError as error:
        problem = _from_status(error.response.status_code, repository, redact(str(error), [token]))
    except (OSError, ValueError, RuntimeError) as error:
        problem = UnavailableError(
            "the Hub cannot be used",
            got=redact(f"{type(error).__name__}: {error}"[:500], [token]),
            advice="push again: what is there already is not sent a second time",
        )
    except Exception as error:
        # The library's HTTP client has changed its name more than once, but not its classes.
        if not {kind.__name__ for kind in type(error).__mro__} & {"HTTPError", "TransportError"}:
            raise
        problem = UnavailableError(
            "the Hub cannot be reached",
            got=redact(f"{type(error).__name__}: {error}"[:500], [token]),
            advice="push again: what is there already is not sent a second time",
        )
    raise problem


def _from_status(status: int, repository: str, said: str) -> HubError:
    """Return the error for an HTTP status that is no success."""
    if status in (401, 403):
        return DeniedError(
            "the Hub refuses to let you write there",
            got=f"{repository}: HTTP status {status}",
            advice="check the token, and that it may write to this repository",
        )
    if status in (409, 412):
        return MovedError(
            "somebody else has committed to the repository meanwhile",
            got=repository,
            advice="look what it was; then push again",
        )
    if status in (408, 425, 429) or status >= 500:
        return UnavailableError(
            "the Hub is not well",
            got=f"HTTP status {status}",
            advice="push again: what is there already is not sent a second time",
        )
    return HubError("the Hub refuses what was sent", got=said[:500])
