"""Container images: brought into an OCI layout of the agent's own, every blob checked.

An engine does not check an image again when it runs it. So the agent brings the image in itself,
in the run, and hashes every blob on the way from the manifest to the layers' uncompressed content.
What names an image is the digest of its config, which survives recompression.
"""

import base64
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aicert import canonical
from aicert.errors import Error
from aicert.reader import Reader

MAX_MANIFEST_BYTES = 4 << 20
MAX_LAYERS = 256
MAX_UNPACKED_BYTES = 1 << 40
_CHUNK = 1 << 20
_TAG = "image"
_SKOPEO_SECONDS = 3600

_SKOPEO_SCHEMES = ("docker", "containers-storage", "docker-daemon", "oci-archive", "docker-archive")
SCHEMES = ("oci", *_SKOPEO_SCHEMES)

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_TARS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
_GZIPS = (
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ImageError(Error):
    """An image cannot be used."""

    code = "image.invalid"


class ImageNotFoundError(ImageError):
    """There is no such image."""

    code = "image.not-found"


class ImageReferenceError(ImageError):
    """The reference is not one that we know, or names a mutable tag."""

    code = "image.reference"


class BlobError(ImageError):
    """A blob is not what its digest says: the image was altered or damaged."""

    code = "image.blob-altered"


class ImagePlatformError(ImageError):
    """The image is for another platform."""

    code = "image.platform"


class ImageUnsupportedError(ImageError):
    """The image uses a format that is not accepted."""

    code = "image.unsupported"


class SkopeoError(ImageError):
    """The image could not be copied."""

    code = "image.copy"


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image whose every blob was checked. Digests are hex, `layers` are diff ids."""

    layout: Path
    tag: str
    config_digest: str
    manifest_digest: str
    layers: tuple[str, ...]
    architecture: str
    environment: Mapping[str, str]
    volumes: tuple[str, ...]
    size: int


def acquire(
    reference: str,
    *,
    base: Path | None,
    into: Path,
    secrets: Mapping[str, Any] | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda _: None,
) -> OciImage:
    """Bring an image into the folder `into`, as an OCI layout, and check every blob.

    Args:
        reference: `oci:PATH[:TAG]`, `oci-archive:PATH`, `docker-archive:PATH`,
            `docker://NAME@sha256:DIGEST`, `containers-storage:NAME` or `docker-daemon:NAME`.
        base: the folder that relative paths are resolved against.
        into: emptied first.
        secrets: `{"username": …, "password": …}` for a registry.
        on_event: is told of progress.

    Raises:
        ImageError: (a subclass) there is no such image, or something about it cannot be accepted.
    """
    scheme, separator, rest = reference.partition(":")
    if scheme not in SCHEMES or not separator or not rest:
        raise ImageReferenceError(
            "the image reference is not one that we know",
            got=reference,
            expected=", ".join(f"{s}:…" for s in SCHEMES),
        )
    for entry in into.iterdir() if into.exists() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    into.mkdir(parents=True, exist_ok=True)
    if scheme == "oci":
        path, tag = split_tag(rest)
        source, tag = _resolve(path, base), tag
        return _bring(_Layout(source, copy_to=into), tag, into, on_event)
    if scheme == "docker" and not re.search(r"@sha256:[0-9a-f]{64}$", rest):
        raise ImageReferenceError(
            "a tag can change; name the image by its digest",
            got=reference,
            expected=f"{reference.split('@')[0]}@sha256:…",
            advice="`skopeo inspect --format '{{.Digest}}' docker://NAME:TAG` prints the digest",
        )
    if scheme.endswith("-archive"):
        path, tag = split_tag(rest)
        source = _resolve(path, base)
        if not source.is_file():
            raise ImageNotFoundError("there is no such image archive", got=source)
        location = f"{scheme}:{source}" + (f":{tag}" if tag else "")
    else:
        location = reference
    _skopeo(location, into, secrets or {})
    return _bring(_Layout(into), _TAG, into, on_event)


def identify(reference: str, *, base: Path | None, secrets: Mapping[str, Any] | None = None) -> str:
    """Return the digest (hex) of the config that a reference leads to now; no layer is read.

    Nothing is checked: this tells whether an image has changed, and `acquire` what it is.

    Raises:
        ImageError: (a subclass) there is no such image, or no such reference.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "oci":
        path, tag = split_tag(rest)
        layout = _Layout(_resolve(path, base))
        descriptor = _choose(layout, _read_index(layout.path), tag)
        manifest = Reader(_json(layout.small(descriptor)), "manifest", ImageError)
        return str(_descriptor(manifest.child("config"))["digest"]).removeprefix("sha256:")
    location = reference
    if scheme.endswith("-archive"):
        path, tag = split_tag(rest)
        location = f"{scheme}:{_resolve(path, base)}" + (f":{tag}" if tag else "")
    options = ["inspect", "--config", "--raw"]
    return hashlib.sha256(_ask_skopeo(options, location, secrets or {})).hexdigest()


@dataclass(frozen=True)
class _Layout:
    """An OCI layout being read; blobs are copied to `copy_to` in the pass that hashes them."""

    path: Path
    copy_to: Path | None = None

    def small(self, descriptor: Mapping[str, Any]) -> bytes:
        """Return a small blob (a manifest, a config), checked."""
        if descriptor["size"] > MAX_MANIFEST_BYTES:
            raise ImageUnsupportedError("a manifest is too large", got=descriptor["size"])
        return b"".join(self._chunks(descriptor))

    def unpacked_digest(
        self, descriptor: Mapping[str, Any], progress: Callable[[int], None]
    ) -> str:
        """Check a layer's blob; return the SHA-256 of its uncompressed content, in hex."""
        kind = descriptor["mediaType"]
        if kind in _TARS:
            for chunk in self._chunks(descriptor):
                progress(len(chunk))
            return str(descriptor["digest"]).removeprefix("sha256:")
        digest, size = hashlib.sha256(), 0
        gunzip = zlib.decompressobj(wbits=31)
        try:
            for chunk in self._chunks(descriptor):
                progress(len(chunk))
                left = chunk
                while left:
                    if gunzip.eof:  # gzip members may follow each other (RFC 1952, 2.2)
                        gunzip = zlib.decompressobj(wbits=31)
                    data = gunzip.decompress(left, 4 * _CHUNK)
                    size += len(data)
                    if size > MAX_UNPACKED_BYTES:
                        raise ImageUnsupportedError("a layer is too large when unpacked")
                    digest.update(data)
                    left = gunzip.unused_data if gunzip.eof else gunzip.unconsumed_tail
            digest.update(gunzip.flush())
        except zlib.error as error:
            raise BlobError("a layer is not gzip", got=error) from error
        if not gunzip.eof:
            raise BlobError("a layer ends too soon", got=descriptor["digest"])
        return digest.hexdigest()

    def _chunks(self, descriptor: Mapping[str, Any]) -> Any:
        """Yield a blob's bytes; raise at the end if they are not what the descriptor says."""
        hexdigest = str(descriptor["digest"]).removeprefix("sha256:")
        source = self.path / "blobs" / "sha256" / hexdigest
        digest, size = hashlib.sha256(), 0
        target = None
        try:
            descriptor_fd = _open(source, os.O_NOFOLLOW)
        except OSError as error:
            raise ImageNotFoundError(
                "a blob of the image is missing", got=f"{source}: {error.strerror}"
            ) from error
        with open(descriptor_fd, "rb", buffering=0) as stream:
            if self.copy_to is not None:
                folder = self.copy_to / "blobs" / "sha256"
                folder.mkdir(parents=True, exist_ok=True)
                # Buffered: such a file writes the whole of what it is given, or fails.
                target = (folder / hexdigest).open("wb")
            try:
                while size <= descriptor["size"] and (chunk := stream.read(_CHUNK)):
                    digest.update(chunk)
                    size += len(chunk)
                    if target is not None:
                        target.write(chunk)
                    yield chunk
            finally:
                if target is not None:
                    target.close()
        if digest.hexdigest() != hexdigest or size != descriptor["size"]:
            raise BlobError(
                "a blob of the image is not what its digest says",
                got=f"sha256:{digest.hexdigest()}, {size} bytes",
                expected=f"sha256:{hexdigest}, {descriptor['size']} bytes",
                advice="build or pull the image again; it was altered or damaged",
            )


def _bring(
    layout: _Layout,
    tag: str | None,
    into: Path,
    on_event: Callable[[dict[str, Any]], None],
) -> OciImage:
    """Walk from the index to the layers, checking each step."""
    manifest_descriptor = _choose(layout, _read_index(layout.path), tag)
    manifest = Reader(_json(layout.small(manifest_descriptor)), "manifest", ImageError)
    manifest.const("schemaVersion", 2)
    config_descriptor = _descriptor(manifest.child("config"))
    layers = [_descriptor(item) for item in manifest.children("layers", max_items=MAX_LAYERS)]
    for layer in layers:
        if layer["mediaType"] not in _TARS + _GZIPS:
            raise ImageUnsupportedError(
                "a layer's format is not accepted",
                got=layer["mediaType"],
                expected="a tar archive, plain or gzip",
                advice="build the image with `--compression-format gzip`",
            )
    config = Reader(_json(layout.small(config_descriptor)), "config", ImageError)
    architecture = config.text("architecture")
    if (system := config.text("os")) != "linux" or architecture != _host():
        raise ImagePlatformError(
            "the image is for another platform",
            got=f"{system}/{architecture}",
            expected=f"linux/{_host()}",
        )
    diff_ids = config.child("rootfs").texts("diff_ids", max_items=MAX_LAYERS)
    unpacked = _hash_layers(layout, layers, on_event)
    if tuple(f"sha256:{digest}" for digest in unpacked) != diff_ids:
        raise BlobError(
            "the layers are not those that the image's config names",
            got=", ".join(unpacked),
            expected=", ".join(diff_ids),
        )
    inner = config.child("config") if config.has("config") and not config.null("config") else None
    tagged = {
        **manifest_descriptor,
        "annotations": {"org.opencontainers.image.ref.name": _TAG},
    }
    (into / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (into / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    return OciImage(
        layout=into,
        tag=_TAG,
        config_digest=config_descriptor["digest"].removeprefix("sha256:"),
        manifest_digest=manifest_descriptor["digest"].removeprefix("sha256:"),
        layers=tuple(unpacked),
        architecture=architecture,
        environment=_environment(inner),
        volumes=_volumes(inner),
        size=sum(layer["size"] for layer in layers),
    )


def _hash_layers(
    layout: _Layout,
    layers: list[dict[str, Any]],
    on_event: Callable[[dict[str, Any]], None],
) -> list[str]:
    total = sum(layer["size"] for layer in layers)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done * 20 // max(total, 1) != before * 20 // max(total, 1):
            on_event({"type": "progress", "what": "image", "done": done, "total": total,
                      "unit": "bytes"})  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda layer: layout.unpacked_digest(layer, progress), layers))


def _read_index(path: Path) -> list[dict[str, Any]]:
    index = path / "index.json"
    try:
        with open(_open(index), "rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ImageNotFoundError(
            "there is no image at this path",
            got=f"{index}: {error.strerror}",
            expected="a folder with an OCI image layout",
            advice="for the examples, `make image-demo` builds it",
        ) from error
    reader = Reader(_json(data), "index", ImageError)
    return [_descriptor(item) for item in reader.children("manifests", max_items=1000)]


def _open(path: Path, flags: int = 0) -> int:
    """Open a file to read it; a pipe in its place holds nobody up.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _choose(layout: _Layout, descriptors: list[dict[str, Any]], tag: str | None) -> dict[str, Any]:
    """Choose the manifest with the tag, or the only one; within an index, this platform's."""
    if tag is not None:
        descriptors = [d for d in descriptors if tag in (d["name"], d["name"].rsplit(":")[-1])]
    if len(descriptors) != 1:
        raise ImageReferenceError(
            "the layout does not hold exactly one such image",
            got=len(descriptors),
            advice="name one by its tag: oci:PATH:TAG",
        )
    descriptor = descriptors[0]
    if descriptor["mediaType"] in _INDEXES:
        reader = Reader(_json(layout.small(descriptor)), "index", ImageError)
        listed = [_descriptor(item) for item in reader.children("manifests", max_items=1000)]
        fitting = [d for d in listed if d["platform"] == ("linux", _host())]
        if not fitting:
            raise ImagePlatformError(
                "the image is not there for this platform",
                got=", ".join("/".join(d["platform"]) for d in listed if d["platform"]),
                expected=f"linux/{_host()}",
            )
        descriptor = fitting[0]
    if descriptor["mediaType"] not in _MANIFESTS:
        raise ImageUnsupportedError("this is not an image manifest", got=descriptor["mediaType"])
    return descriptor


def _descriptor(reader: Reader) -> dict[str, Any]:
    """Read an OCI descriptor; fields that are not used here are left alone."""
    digest = reader.text("digest", max_length=200)
    if not _DIGEST.fullmatch(digest):
        raise ImageUnsupportedError("a digest is not SHA-256", got=digest)
    if reader.has("urls"):
        raise ImageUnsupportedError("a layer is kept elsewhere (urls)", got=digest)
    name, target = "", None
    if reader.has("annotations"):
        annotations = reader.raw("annotations") or {}
        name = str(annotations.get("org.opencontainers.image.ref.name", ""))
    if reader.has("platform"):
        found = reader.child("platform")
        target = (found.text("os"), found.text("architecture"))
    return {
        "mediaType": reader.text("mediaType", max_length=200),
        "digest": digest,
        "size": reader.integer("size"),
        "name": name,
        "platform": target,
    }


def _environment(config: Reader | None) -> dict[str, str]:
    """Return the variables that the image sets."""
    if config is None or not config.has("Env") or config.null("Env"):
        return {}
    pairs = [item.partition("=") for item in config.texts("Env", max_items=256, max_length=32768)]
    return {name: value for name, _, value in pairs}


def _volumes(config: Reader | None) -> tuple[str, ...]:
    """Return the places that the image wants to be writable."""
    if config is None or not config.has("Volumes") or config.null("Volumes"):
        return ()
    found = config.raw("Volumes")
    if type(found) is not dict:
        raise ImageUnsupportedError("the image's volumes are no object", got=type(found).__name__)
    return tuple(sorted(found))


def _json(data: bytes) -> Any:
    return canonical.loads(data, max_bytes=MAX_MANIFEST_BYTES)


def _host() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def split_tag(text: str) -> tuple[str, str | None]:
    """Split `PATH[:TAG]`; a colon within the path's folders is not a tag's."""
    path, separator, tag = text.rpartition(":")
    return (path, tag) if separator and "/" not in tag else (text, None)


def _resolve(path: str, base: Path | None) -> Path:
    expanded = Path(path).expanduser()
    return expanded if expanded.is_absolute() or base is None else base / expanded


def _skopeo(location: str, into: Path, secrets: Mapping[str, Any]) -> None:
    """Copy an image into an OCI layout, byte for byte."""
    options = ["copy", "--quiet", "--preserve-digests"]
    _ask_skopeo(options, location, secrets, f"oci:{into}:{_TAG}")


def _ask_skopeo(options: list[str], location: str, secrets: Mapping[str, Any], *more: str) -> bytes:
    """Run skopeo and return what it prints. Its policy is off: we check the digests."""
    flag = "--src-authfile" if options[0] == "copy" else "--authfile"
    with tempfile.TemporaryDirectory(prefix="aicert-") as folder:
        authfile = _authfile(Path(folder), location, secrets)
        command = [
            "skopeo", "--insecure-policy", *options, flag, str(authfile), location, *more,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SKOPEO_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise SkopeoError(
                "skopeo is not installed", advice="apt-get install skopeo, or `make setup`"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SkopeoError("the image took too long to read", got=location) from error
    if done.returncode != 0:
        text = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = text[-1] if text else f"exit status {done.returncode}"
        missing = re.search(r"not found|unknown|no such|does not.*(exist|resolve)", reason, re.I)
        kind = ImageNotFoundError if missing else SkopeoError
        raise kind("the image could not be read", got=reason, expected=location)
    return done.stdout


def _authfile(folder: Path, location: str, secrets: Mapping[str, Any]) -> Path:
    """Write the registry's credentials where skopeo reads them: no process list shows them."""
    auths = {}
    if secrets.get("username"):
        registry = location.removeprefix("docker://").partition("/")[0]
        pair = f"{secrets['username']}:{secrets.get('password', '')}".encode()
        auths[registry] = {"auth": base64.b64encode(pair).decode("ascii")}
    path = folder / "auth.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as stream:
        json.dump({"auths": auths}, stream)
    return path
