"""Publishing the OS image: the VHD by its specification, the blob in Azurite, the gallery by
Microsoft's schema."""

import hashlib
import random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aicert.agent import azure_roles, azure_vm
from deployments.azure import publish as module
from deployments.azure.publish import OtherKindError, Target, VersionTakenError, main, publish
from deployments.azure.vhd import FixedVhd, geometry
from tests.agent.fetch import stores
from tests.support import tls
from tests.support.arm import GROUP, PREFIX, SUBSCRIPTION, Arm, Credential, Fault
from tests.support.forger import Authority

pytestmark = pytest.mark.xdist_group("azure-publish")

MIB = 1 << 20
GALLERY = f"{PREFIX}/Microsoft.Compute/galleries/gal"
ACCOUNT = f"{PREFIX}/Microsoft.Storage/storageAccounts/acmeimages"
DEFINITION = f"{GALLERY}/images/measured"


@dataclass
class Place:
    """The stand-in, a container of Azurite, and where a disk goes."""

    arm: Arm
    container: Any
    target: Target

    def publish(self, disk: Path, **changes: Any) -> str:
        return publish(
            disk,
            replace(self.target, **changes),
            Credential(),
            blob_credential=stores.Azure.key,
            poll=0,
            retry_backoff_factor=0,
        )

    def puts(self) -> list[str]:
        return [path for method, path in self.arm.requests if method == "PUT"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tls.Loopback, str]]:
    files = tls.loopback(tmp_path_factory.mktemp("tls"))
    options = ("--cert", str(files.certificate), "--key", str(files.key))
    with pytest.MonkeyPatch.context() as patch, stores.azurite(*options) as address:
        patch.setenv("REQUESTS_CA_BUNDLE", str(files.certificate))
        yield files, f"{address}/{stores.Azure.account}"


@pytest.fixture
def place(service: tuple[tls.Loopback, str]) -> Iterator[Place]:
    files, address = service
    arm = Arm(files)
    client: Any = BlobServiceClient(address, stores.Azure.key)
    container = client.create_container(f"images-{uuid.uuid4()}")
    yield Place(
        arm,
        container,
        Target(
            gallery=GALLERY,
            account=ACCOUNT,
            location="westeurope",
            version="1.0.0",
            image="measured",
            container=container.container_name,
            endpoint=arm.url,
            blobs=address,
        ),
    )
    arm.close()
    assert arm.violations == []


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with much nothing in it, and no round size."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB + 100))
        file.seek(21 * MIB + 17)
        file.write(random.Random(2).randbytes(70_000))
    return path


def read(vhd: bytes) -> dict[str, Any]:
    """Read a fixed VHD's footer, and refuse one that is none (Hard Disk Footer Format)."""
    footer = vhd[-512:]
    names = (
        "cookie", "features", "version", "offset", "time", "app", "appver", "os", "original",
        "current", "c", "h", "s", "type", "checksum", "id", "saved",
    )  # fmt: skip
    values = struct.unpack(">8sIIQI4sI4sQQHBBII16sB", footer[:85])
    found = dict(zip(names, values, strict=True))
    assert found["cookie"] == b"conectix" and found["version"] == 0x00010000
    assert found["features"] & 2 and found["offset"] == 2**64 - 1 and found["type"] == 2
    assert found["original"] == found["current"] == len(vhd) - 512
    assert found["current"] % MIB == 0, "Azure refuses a disk that is not a whole number of MiB"
    plain = footer[:64] + bytes(4) + footer[68:]
    assert found["checksum"] == 0xFFFFFFFF - sum(plain)
    assert not any(footer[85:])
    assert found["c"] * found["h"] * found["s"] <= found["current"] // 512
    return found


# -- the VHD ---------------------------------------------------------------------------------------


def test_a_disk_becomes_a_fixed_vhd_of_whole_mebibytes(disk: Path) -> None:
    vhd = FixedVhd(disk)
    data = bytearray(vhd.size)
    for offset, piece in vhd.chunks(MIB):
        data[offset : offset + len(piece)] = piece
    read(bytes(data))
    raw = disk.read_bytes()
    assert data[: len(raw)] == raw and not any(data[len(raw) : -512])
    assert hashlib.sha256(data).hexdigest() == vhd.sha256
    assert len(list(vhd.chunks(MIB))) < 6  # what is zero is not sent
    assert all(offset % 512 == len(piece) % 512 == 0 for offset, piece in vhd.chunks(MIB))


def test_equal_disks_give_equal_vhds_and_others_others(disk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    copy.write_bytes(disk.read_bytes())
    assert FixedVhd(copy).sha256 == FixedVhd(disk).sha256
    data = bytearray(disk.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert FixedVhd(copy).sha256 != FixedVhd(disk).sha256
    assert FixedVhd(copy).footer[68:84] != FixedVhd(disk).footer[68:84]  # the disks' ids


@pytest.mark.parametrize(
    ("mebibytes", "expected"),
    [(40, (963, 5, 17)), (1024, (2080, 16, 63)), (30 * 1024, (62415, 16, 63)),
     (64 * 1024, (32896, 16, 255))],
)  # fmt: skip
def test_the_geometry_is_that_of_the_specification(mebibytes: int, expected: Any) -> None:
    assert geometry(mebibytes * 2048) == expected


# -- publishing ------------------------------------------------------------------------------------


def test_a_published_disk_is_a_version_that_machines_of_both_kinds_boot(
    place: Place, disk: Path
) -> None:
    seen: list[bytes] = []

    def take(version: dict[str, Any]) -> None:
        source = version["properties"]["storageProfile"]["osDiskImage"]["source"]
        assert source["storageAccountId"] == ACCOUNT
        container, name = source["uri"].split("/")[-2:]
        assert container == place.container.container_name
        seen.append(place.container.download_blob(name).readall())

    place.arm.on_version = take
    said: list[str] = []
    made = publish(
        disk, place.target, Credential(), blob_credential=stores.Azure.key,
        say=said.append, poll=0,
    )  # fmt: skip
    assert made == f"{DEFINITION}/versions/1.0.0"
    (data,) = seen
    read(data)
    assert data[: disk.stat().st_size] == disk.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    version = place.arm.resources[made.lower()]
    assert version["tags"] == {"aicert-sha256": digest}
    assert "securityProfile" not in version["properties"]
    assert digest in said[0]
    # And a machine block that names it passes its check of images.
    config = azure_vm.VmConfig(
        subscription=SUBSCRIPTION,
        group=GROUP,
        location="westeurope",
        size="Standard_D4s_v5",
        image=made,
        subnet=f"{PREFIX}/Microsoft.Network/virtualNetworks/net/subnets/runs",
        secure_boot=False,  # it was published without a key
        endpoint=place.arm.url,
    )
    for security in ("trusted-launch", "confidential"):
        both: Any = replace(config, security=security)
        look = dict(azure_vm.AzureVms(both, Credential()).look())
        assert look["image"] == (
            "Microsoft.Compute/galleries/gal/images/measured/versions/1.0.0, "
            "TrustedLaunchAndConfidentialVmSupported"
        )


def test_publishing_again_changes_nothing(place: Place, disk: Path) -> None:
    first = place.publish(disk)
    puts = place.puts()
    (blob,) = place.container.list_blobs()
    assert place.publish(disk) == first
    assert place.puts() == puts
    (again,) = place.container.list_blobs()
    assert again.etag == blob.etag


def test_another_version_of_the_same_disk_uploads_nothing(place: Place, disk: Path) -> None:
    place.publish(disk)
    (blob,) = place.container.list_blobs()
    assert place.publish(disk, version="1.0.1").endswith("/1.0.1")
    (again,) = place.container.list_blobs()
    assert again.etag == blob.etag


def test_a_version_never_becomes_another_disk(place: Place, disk: Path) -> None:
    place.publish(disk)
    disk.write_bytes(disk.read_bytes() + b"x")
    with pytest.raises(VersionTakenError) as caught:
        place.publish(disk)
    assert "another number" in (caught.value.advice or "")
    assert len(list(place.container.list_blobs())) == 1


def test_an_upload_that_broke_off_is_gone_on_with(
    place: Place, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import BlobClient

    upload, count = BlobClient.upload_page, 0

    def breaks(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return upload(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BlobClient, "upload_page", breaks)
        patch.setattr(module, "CHUNK", MIB)
        with pytest.raises(KeyboardInterrupt):
            place.publish(disk)
    assert place.puts() == []
    place.publish(disk)
    (blob,) = place.container.list_blobs()
    data = place.container.download_blob(blob.name).readall()
    assert hashlib.sha256(data).hexdigest() == blob.name.removesuffix(".vhd")


def test_what_lies_in_the_way_is_named(place: Place, disk: Path) -> None:
    place.container.upload_blob(f"{FixedVhd(disk).sha256}.vhd", b"something else")
    with pytest.raises(azure_vm.ConflictError, match="another blob"):
        place.publish(disk)


def test_an_image_of_another_kind_is_left_alone(place: Place, disk: Path) -> None:
    place.publish(disk)
    image = place.arm.resources[DEFINITION.lower()]
    for name, value in (("osState", "Generalized"), ("features", [])):
        before = image["properties"][name]
        image["properties"][name] = value
        with pytest.raises(OtherKindError) as caught:
            place.publish(disk, version="2.0.0")
        assert "--image" in (caught.value.advice or "")
        image["properties"][name] = before


def test_a_key_of_ones_own_may_sign_what_boots(place: Place, disk: Path) -> None:
    der = Authority().root.public_bytes(Encoding.DER)
    made = place.publish(disk, certificates=(der,))
    settings = place.arm.resources[made.lower()]["properties"]["securityProfile"]["uefiSettings"]
    (key,) = settings["additionalSignatures"]["db"]
    assert key["type"] == "x509" and len(key["value"]) == 1
    assert settings["signatureTemplateNames"] == ["MicrosoftUefiCertificateAuthorityTemplate"]


def test_a_version_that_azure_could_not_make_is_an_error_and_said_again(
    place: Place, disk: Path
) -> None:
    place.arm.version_fails = ("InternalOperationError", "replication failed")
    with pytest.raises(azure_vm.AzureVmError) as caught:
        place.publish(disk)
    assert "replication failed" in (caught.value.got or "")
    with pytest.raises(azure_vm.ConflictError, match="has failed"):
        place.publish(disk)


def test_a_missing_right_is_named(place: Place, disk: Path) -> None:
    place.arm.faults = [Fault("PUT", "/images/measured$", 403, "AuthorizationFailed", "no write")]
    with pytest.raises(azure_vm.DeniedError):
        place.publish(disk)


def test_the_publishers_roles_are_enough_where_they_are_given(place: Place, disk: Path) -> None:
    subscription = f"/subscriptions/{SUBSCRIPTION}"
    place.arm.permissions = {
        subscription: [([*azure_roles.PUBLISHER_SUBSCRIPTION], [])],
        f"{subscription}/resourceGroups/{GROUP}": [([*azure_roles.PUBLISHER], [])],
    }
    place.publish(disk)
    asked = {action.lower() for action in place.arm.actions()}
    roles = {*azure_roles.PUBLISHER, *azure_roles.PUBLISHER_SUBSCRIPTION}
    # The rest Azure checks by itself: the gallery, and the blob's account.
    assert {action.split("/", 1)[1] for action in roles if action.lower() not in asked} == {
        "galleries/read",
        "storageAccounts/listKeys/action",
        "storageAccounts/read",
    }
    # How it goes is looked at in the subscription, where a role in the group says nothing.
    del place.arm.permissions[subscription]
    with pytest.raises(azure_vm.DeniedError) as caught:
        place.publish(disk, version="1.0.1")
    assert "locations/capsOperations/read" in (caught.value.got or "")


@pytest.mark.parametrize(
    "change",
    [{"gallery": "gal"}, {"account": "acme"}, {"version": "1.0"}, {"version": "latest"},
     {"location": "West Europe"}, {"image": "a/b"}],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_found_before_anything_is_read(
    place: Place, tmp_path: Path, change: dict[str, str]
) -> None:
    with pytest.raises(azure_vm.ConfigError) as caught:
        place.publish(tmp_path / "none", **change)
    assert str(caught.value.got).startswith(next(iter(change)))
    assert place.arm.requests == []


def test_the_command_prints_the_versions_id_or_what_is_wrong(
    place: Place, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = Authority(datetime.now(UTC) - timedelta(1), datetime.now(UTC) + timedelta(1)).root_pem
    (tmp_path / "key.pem").write_bytes(root)
    x509.load_pem_x509_certificate(root)

    def with_a_key(disk: Path, target: Target, say: Any) -> str:
        say("it goes well")
        key = stores.Azure.key
        return publish(disk, target, Credential(), blob_credential=key, poll=0, say=say)

    monkeypatch.setattr(module, "publish", with_a_key)
    words = [
        str(disk), "--version", "1.0.0", "--location", "westeurope", "--gallery", GALLERY,
        "--account", ACCOUNT, "--container", place.container.container_name,
        "--image", "measured", "--endpoint", place.arm.url, "--blobs", str(place.target.blobs),
        "--certificate", str(tmp_path / "key.pem"), "--region", "northeurope",
    ]  # fmt: skip
    assert main(words) == 0
    assert capsys.readouterr().out == f"{DEFINITION}/versions/1.0.0\n"
    profile = place.arm.resources[f"{DEFINITION}/versions/1.0.0".lower()]["properties"]
    regions = profile["publishingProfile"]["targetRegions"]
    assert [region["name"] for region in regions] == ["westeurope", "northeurope"]
    words[2] = "one"
    assert main(words) == 1
    assert "azure-vm.config" in capsys.readouterr().err
    words[0] = str(tmp_path / "none")
    words[2] = "1.0.0"
    assert main(words) == 2


def test_the_container_must_be_there(place: Place, disk: Path) -> None:
    with pytest.raises((azure_vm.NotFoundError, ResourceNotFoundError)):
        place.publish(disk, container="nothing-here")
