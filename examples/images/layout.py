"""Write an OCI image layout directly: its digests are known before any engine is asked.

Forty lines of the OCI image specification (image-layout, manifest, config), with nothing in them
that changes from one build to the next.
"""

import hashlib
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CREATED = "1970-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def rewrite(archive: Path, into: Path) -> None:
    """Write a tar archive again, in one form: its own depends on the tools that made it."""
    with (
        tarfile.open(archive, "r|") as old,
        tarfile.open(into, "w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in old:
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)


def write(
    into: Path,
    layers: Sequence[Path],
    *,
    environment: Mapping[str, str] | None = None,
    tag: str = "latest",
) -> str:
    """Write a layout with uncompressed tar layers, which are moved in; return the config digest."""
    blobs = into / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    described = []
    for layer in layers:
        with layer.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = layer.stat().st_size
        layer.rename(blobs / digest)
        kind = "application/vnd.oci.image.layer.v1.tar"
        described.append({"mediaType": kind, "digest": f"sha256:{digest}", "size": size})

    def blob(value: Any, kind: str) -> dict[str, Any]:
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}

    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": CREATED,
        "config": {"Env": [f"{k}={v}" for k, v in sorted((environment or {}).items())]},
        "rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in described]},
        "history": [{"created": CREATED} for _ in described],
    }
    described_config = blob(config, "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described_config,
        "layers": described,
    }
    named = blob(manifest, "application/vnd.oci.image.manifest.v1+json")
    named["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (into / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (into / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return str(described_config["digest"]).removeprefix("sha256:")
