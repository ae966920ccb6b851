"""Images: every blob is checked, and nothing but the checked image is used."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import oci
from aicert.agent.oci import OciImage, acquire
from examples.images import tiny


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "image"
    tiny.build(folder)
    return folder


@pytest.fixture
def image(built: Path, tmp_path: Path) -> Path:
    """A layout that a test may damage."""
    copy = tmp_path / "image"
    shutil.copytree(built, copy)
    return copy


def get(source: Path | str, into: Path, base: Path | None = None) -> OciImage:
    reference = f"oci:{source}" if isinstance(source, Path) else source
    return acquire(reference, base=base, into=into)


def blobs(layout: Path) -> Path:
    return layout / "blobs" / "sha256"


def read_blob(layout: Path, digest: str) -> Any:
    return json.loads((blobs(layout) / digest.removeprefix("sha256:")).read_bytes())


def put_blob(layout: Path, value: Any) -> tuple[str, int]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs(layout) / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def manifest_of(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    manifest: dict[str, Any] = read_blob(layout, index["manifests"][0]["digest"])
    return manifest


def replace_manifest(layout: Path, manifest: dict[str, Any], **descriptor: Any) -> None:
    index = json.loads((layout / "index.json").read_text())
    digest, size = put_blob(layout, manifest)
    index["manifests"][0].update(digest=digest, size=size, **descriptor)
    (layout / "index.json").write_text(json.dumps(index))


def replace_config(layout: Path, **changes: Any) -> None:
    manifest = manifest_of(layout)
    config = {**read_blob(layout, manifest["config"]["digest"]), **changes}
    digest, size = put_blob(layout, config)
    manifest["config"].update(digest=digest, size=size)
    replace_manifest(layout, manifest)


def test_an_image_is_copied_whole_with_its_digests(built: Path, tmp_path: Path) -> None:
    image = get(built, tmp_path / "into")
    manifest = manifest_of(built)
    assert f"sha256:{image.config_digest}" == manifest["config"]["digest"]
    assert [f"sha256:{layer}" for layer in image.layers] == [manifest["layers"][0]["digest"]]
    assert image.environment == {"PATH": "/bin"}
    names = {path.name for path in blobs(tmp_path / "into").iterdir()}
    assert names == {path.name for path in blobs(built).iterdir()}


def test_the_tiny_image_is_the_same_bytes_every_time(built: Path, tmp_path: Path) -> None:
    assert tiny.build(tmp_path / "again") == get(built, tmp_path / "into").config_digest


def test_a_relative_path_starts_at_the_specs_folder(built: Path, tmp_path: Path) -> None:
    image = get(f"oci:{built.name}:latest", tmp_path / "into", base=built.parent)
    assert image.layers


@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
def test_an_altered_blob_is_refused(image: Path, tmp_path: Path, kind: str) -> None:
    index = json.loads((image / "index.json").read_text())
    manifest = manifest_of(image)
    digest = {
        "manifest": index["manifests"][0]["digest"],
        "config": manifest["config"]["digest"],
        "layer": manifest["layers"][0]["digest"],
    }[kind]
    blob = blobs(image) / digest.removeprefix("sha256:")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(oci.BlobError) as caught:
        get(image, tmp_path / "into")
    assert caught.value.code == "image.blob-altered"
    assert caught.value.expected is not None
    assert digest in caught.value.expected


def test_a_blob_that_is_longer_than_it_says_is_not_read_on(image: Path, tmp_path: Path) -> None:
    (layer,) = manifest_of(image)["layers"]
    path = blobs(image) / layer["digest"].removeprefix("sha256:")
    os.truncate(path, 1 << 40)
    with pytest.raises(oci.BlobError):
        get(image, tmp_path / "into")


def test_a_copy_that_the_disk_does_not_take_whole_is_no_image(image: Path, tmp_path: Path) -> None:
    (layer,) = manifest_of(image)["layers"]
    code = f"""
import resource, signal
from pathlib import Path
from aicert.agent.oci import acquire
limit = {layer["size"]} - 100
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
acquire({f"oci:{image}"!r}, base=None, into=Path({str(tmp_path / "into")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert "File too large" in done.stderr


def test_a_layer_that_the_config_does_not_name_is_refused(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w"):
        pass
    digest, size = put_blob(image, other.read_bytes())
    manifest = manifest_of(image)
    manifest["layers"][0].update(digest=digest, size=size)
    replace_manifest(image, manifest)
    with pytest.raises(oci.BlobError, match="not those that the image's config names"):
        get(image, tmp_path / "into")


@pytest.mark.parametrize("members", [1, 2])
def test_a_gzip_layer_is_named_by_its_uncompressed_content(
    image: Path, tmp_path: Path, members: int
) -> None:
    before = get(image, tmp_path / "plain")
    manifest = manifest_of(image)
    plain = (blobs(image) / manifest["layers"][0]["digest"][7:]).read_bytes()
    half = len(plain) // members
    data = gzip.compress(plain[:half]) + (gzip.compress(plain[half:]) if members > 1 else b"")
    digest, size = put_blob(image, data)
    manifest["layers"][0].update(
        digest=digest, size=size, mediaType="application/vnd.oci.image.layer.v1.tar+gzip"
    )
    replace_manifest(image, manifest)
    after = get(image, tmp_path / "gzip")
    assert (after.config_digest, after.layers) == (before.config_digest, before.layers)
    assert after.manifest_digest != before.manifest_digest


def test_a_cut_gzip_layer_is_refused(image: Path, tmp_path: Path) -> None:
    manifest = manifest_of(image)
    plain = (blobs(image) / manifest["layers"][0]["digest"][7:]).read_bytes()
    digest, size = put_blob(image, gzip.compress(plain)[:-100])
    manifest["layers"][0].update(
        digest=digest, size=size, mediaType="application/vnd.oci.image.layer.v1.tar+gzip"
    )
    replace_manifest(image, manifest)
    with pytest.raises(oci.BlobError, match="ends too soon"):
        get(image, tmp_path / "into")


def test_an_image_for_another_platform_is_refused(image: Path, tmp_path: Path) -> None:
    replace_config(image, architecture="s390x")
    with pytest.raises(oci.ImagePlatformError) as caught:
        get(image, tmp_path / "into")
    assert caught.value.got == "linux/s390x"


def test_an_index_gives_the_image_for_this_platform(image: Path, tmp_path: Path) -> None:
    index = json.loads((image / "index.json").read_text())
    inner = index["manifests"][0]
    architecture = get(image, tmp_path / "before").architecture
    listed = [
        {
            **inner,
            "digest": "sha256:" + "00" * 32,
            "platform": {"os": "linux", "architecture": "x"},
        },
        {**inner, "platform": {"os": "linux", "architecture": architecture}},
    ]
    digest, size = put_blob(image, {"schemaVersion": 2, "manifests": listed})
    kind = "application/vnd.oci.image.index.v1+json"
    index["manifests"] = [{"mediaType": kind, "digest": digest, "size": size}]
    (image / "index.json").write_text(json.dumps(index))
    assert f"sha256:{get(image, tmp_path / 'into').manifest_digest}" == inner["digest"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"urls": ["https://elsewhere.invalid/layer"]}, "image.unsupported"),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd"}, "image.unsupported"),
        ({"digest": "sha512:" + "00" * 64}, "image.unsupported"),
        ({"digest": "sha256:../../../etc/passwd"}, "image.unsupported"),
        ({"size": 5}, "image.blob-altered"),
    ],
)
def test_a_layer_that_cannot_be_accepted_is_refused(
    image: Path, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    manifest = manifest_of(image)
    manifest["layers"][0].update(change)
    replace_manifest(image, manifest)
    with pytest.raises(oci.ImageError) as caught:
        get(image, tmp_path / "into")
    assert caught.value.code == code


def test_a_blob_that_is_a_link_is_refused(image: Path, tmp_path: Path) -> None:
    digest = manifest_of(image)["layers"][0]["digest"][7:]
    blob = blobs(image) / digest
    moved = tmp_path / "moved"
    blob.rename(moved)
    blob.symlink_to(moved)
    with pytest.raises(oci.ImageNotFoundError):
        get(image, tmp_path / "into")


@pytest.mark.parametrize("name", ["index.json", "blob"])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(
    image: Path, tmp_path: Path, name: str
) -> None:
    place = image / name if name != "blob" else next((image / "blobs" / "sha256").iterdir())
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(oci.ImageNotFoundError) as caught:
        get(image, tmp_path / "into")
    assert "not a regular file" in (caught.value.got or "")


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("oci:missing", "image.not-found"),
        ("oci:image:no-such-tag", "image.reference"),
        ("oci-archive:missing.tar", "image.not-found"),
        ("docker://example.invalid/model:latest", "image.reference"),
        ("docker://example.invalid/model", "image.reference"),
        ("ubuntu", "image.reference"),
        ("ftp://x", "image.reference"),
        ("oci:", "image.reference"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_clear_error(
    image: Path, tmp_path: Path, reference: str, code: str
) -> None:
    with pytest.raises(oci.ImageError) as caught:
        get(reference, tmp_path / "into", base=tmp_path)
    assert caught.value.code == code


def test_an_archive_gives_the_same_image_as_its_layout(built: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(built.rglob("*")):
            tar.add(path, arcname=path.relative_to(built), recursive=False)
    one = get(built, tmp_path / "one")
    two = get("oci-archive:image.tar", tmp_path / "two", base=tmp_path)
    assert (one.config_digest, one.layers) == (two.config_digest, two.layers)


def test_what_was_in_the_folder_before_is_gone(built: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    (into / "blobs" / "sha256").mkdir(parents=True)
    (into / "blobs" / "sha256" / ("00" * 32)).write_bytes(b"left over")
    get(built, into)
    assert not (blobs(into) / ("00" * 32)).exists()
    assert os.listdir(into)


def test_an_image_is_identified_without_its_layers(image: Path, tmp_path: Path) -> None:
    expected = get(image, tmp_path / "into").config_digest
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(image.rglob("*")):
            tar.add(path, arcname=path.relative_to(image), recursive=False)
    assert oci.identify("oci-archive:image.tar", base=tmp_path) == expected
    for layer in manifest_of(image)["layers"]:
        (blobs(image) / layer["digest"].removeprefix("sha256:")).unlink()
    assert oci.identify(f"oci:{image}", base=None) == expected
    replace_config(image, author="somebody else")
    assert oci.identify(f"oci:{image}", base=None) != expected


@pytest.mark.parametrize("reference", ["oci:nowhere", "oci-archive:nowhere.tar"])
def test_an_image_that_is_not_there_has_no_identity(tmp_path: Path, reference: str) -> None:
    with pytest.raises(oci.ImageError):
        oci.identify(reference, base=tmp_path)
