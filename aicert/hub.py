"""Models of the Hugging Face Hub, as a verifier reads them: `hf://owner/model[@revision]`.

The Hub is asked which commit a revision is and which files it has, and then for the files of that
commit. It is not believed: a certificate that it returns is verified like any other, and what comes
beside it is compared with that certificate.
"""

import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from aicert import canonical, download, oms
from aicert.certificate import MAX_BYTES
from aicert.errors import AbsentError, Error
from aicert.manifest import Manifest
from aicert.verify import ExtraFileError, MissingFileError
from aicert.words import count, size

SCHEME = "hf://"
CERTIFICATE = "certificate.json"
README = "README.md"
CARD = "card.md"
BESIDE = frozenset({CERTIFICATE, oms.NAME, README, CARD, ".gitattributes"})
"""What may stand in a repository besides the certified files: what tells of them, and the Hub's own
settings for git."""

MAX_FILES = 10_000
"""The most files that a repository may list."""

HUB = "https://huggingface.co"
_MAX_LISTING = 4 << 20
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URI = re.compile(rf"hf://(?:models/)?({_NAME}/{_NAME})(?:@([^/?#@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(AbsentError):
    """The Hub does not do, or does not say, what it should."""

    code = "hub.failed"
    remedy = "try again later"


class AddressError(HubError):
    """This does not name a model on the Hub."""

    code = "hub.address"


class NotFoundError(HubError):
    """The Hub has no such model, revision or file, or does not show it."""

    code = "hub.not-found"


class DeniedError(HubError):
    """The Hub refuses us."""

    code = "hub.denied"


class NoCertificateError(HubError):
    """The model has no certificate beside it."""

    code = "hub.no-certificate"


class NoSpaceError(HubError):
    """The model does not fit on the disk."""

    code = "hub.no-space"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a model repository: which files it lists; nothing of it is verified."""

    repository: str
    commit: str
    files: frozenset[str]
    endpoint: str
    token: str | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        """Name the commit."""
        return f"{SCHEME}{self.repository}@{self.commit}"

    def certificate(self) -> bytes:
        """Return the certificate, at most one byte over its `MAX_BYTES`, unverified.

        Raises:
            NoCertificateError: there is none.
            DownloadError: it does not come.
        """
        if CERTIFICATE not in self.files:
            raise NoCertificateError(
                f"the model has no {CERTIFICATE}",
                got=self.uri,
                advice="ask its owner for one, or name the revision that has it",
            )
        return self._read(CERTIFICATE, MAX_BYTES)

    def signature(self) -> bytes | None:
        """Return the model's signature, unverified, or None where there is none.

        Raises:
            DownloadError: it does not come.
        """
        return self._read(oms.NAME, MAX_BYTES) if oms.NAME in self.files else None

    def check_names(self, certified: Manifest, ignore: Collection[str] = ()) -> None:
        """Check that the repository lists every certified file and, but for `BESIDE`, no other.

        Raises:
            MissingFileError, ExtraFileError: it does not.
        """
        want = {file.path for file in certified.files}
        if missing := sorted(want - self.files):
            raise MissingFileError(
                f"{count(len(missing), 'certified file')} missing in the repository",
                got=", ".join(missing[:5]),
                advice="do not use this model: the certificate is another's, or it is not whole",
            )
        if extra := sorted(self.files - want - BESIDE - set(ignore)):
            raise ExtraFileError(
                f"{count(len(extra), 'file')} in the repository that the certificate does not name",
                got=", ".join(extra[:5]),
                advice="do not load them; name them with --ignore if they are harmless",
            )

    def save(
        self, certified: Manifest, folder: Path, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write the certified files, and no others, into `folder`, which is empty.

        What comes is bounded by what the certificate says, and is not compared with it here.

        Raises:
            NoSpaceError: the disk has no room for them.
            DownloadError: one does not come.
        """
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < certified.size:
            raise NoSpaceError(
                "the model does not fit on the disk",
                got=f"{size(free)} free in {folder}",
                expected=size(certified.size),
                advice="name a folder on another disk with --download",
            )
        for file in certified.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            address = self._address(file.path)
            download.save(address, path, size=file.size, token=self.token, progress=progress)

    def _read(self, path: str, max_bytes: int) -> bytes:
        return download.read(self._address(path), max_bytes=max_bytes, token=self.token)

    def _address(self, path: str) -> str:
        return f"{self.endpoint}/{self.repository}/resolve/{self.commit}/{quote(path)}"


def find(uri: str, *, token: str | None = None, endpoint: str | None = None) -> Snapshot:
    """Ask the Hub for the commit that `hf://owner/model[@revision]` is, and for its files.

    Args:
        uri: the model; the revision is a branch, a tag or a commit, and `main` where none is given.
        token: what the Hub asks for before it shows a private model.
        endpoint: the Hub's address; by default `$HF_ENDPOINT`, or the Hub that everybody knows.

    Raises:
        AddressError: this names no model.
        NotFoundError, DeniedError: the Hub shows no such model, or no such revision of it.
        DownloadError: it cannot be asked.
        HubError: its answer makes no sense.
    """
    repository, revision = parse(uri)
    check_token(token)
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    named = quote(revision or "main", safe="")
    address = f"{endpoint}/api/models/{repository}/revision/{named}?expand=sha&expand=siblings"
    try:
        data = download.read(address, max_bytes=_MAX_LISTING, token=token)
    except download.DownloadError as error:
        raise _explained(error, repository, revision) from None
    try:
        answer = canonical.loads(data, max_bytes=_MAX_LISTING)
        commit = answer["sha"]
        files = [sibling["rfilename"] for sibling in answer["siblings"]]
        good = isinstance(commit, str) and all(isinstance(path, str) for path in files)
    except (Error, LookupError, TypeError):
        good = False
    if not good or not _COMMIT.fullmatch(commit):
        raise HubError("the Hub's answer makes no sense", got=address.partition("?")[0])
    if _COMMIT.fullmatch(revision or "") and commit != revision:
        raise HubError("the Hub answers with another commit", got=commit, expected=revision)
    if len(files) > MAX_FILES:
        raise HubError("the repository lists too many files", got=len(files), expected=MAX_FILES)
    return Snapshot(repository, commit, frozenset(files), endpoint, token)


def check_token(token: str | None) -> None:
    """Refuse a token that cannot be one, before a library shows it in an error.

    Raises:
        DeniedError: it has a character that no token has.
    """
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise DeniedError(
            "the token has characters that no token has",
            advice="set HF_TOKEN to the token alone, without line ends or spaces",
        )


def parse(uri: str) -> tuple[str, str | None]:
    """Return `owner/model` and the revision that a URI names.

    Raises:
        AddressError: it is not the URI of a model.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise AddressError(
            "this does not name a model on the Hub",
            got=uri,
            expected="hf://owner/model, or hf://owner/model@revision",
            advice="take owner/model from the Hub's page; write a revision's '/' as %2F",
        )
    return match[1], unquote(match[2]) if match[2] else None


def _explained(error: download.DownloadError, repository: str, revision: str | None) -> Error:
    """Return what the Hub's status means."""
    if error.status in (401, 404):
        return NotFoundError(
            "the Hub has no such model, or no such revision of it, or does not show it to you",
            got=repository if revision is None else f"{repository}@{revision}",
            advice="check owner, model and revision; for a private model set HF_TOKEN",
        )
    if error.status == 403:
        return DeniedError(
            "the Hub refuses access",
            got=repository,
            advice="accept the model's terms on its page, and set HF_TOKEN to a token of yours",
        )
    return error
