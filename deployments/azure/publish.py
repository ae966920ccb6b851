"""Publish the measured OS image to a gallery in Azure, for machines to boot.

Usage: python -m deployments.azure.publish DISK --version 1.0.0 --location westeurope
           --gallery GALLERY_ID --account STORAGE_ACCOUNT_ID [--container images] [--region R …]

The disk goes up as a page blob that is named by its digest, and becomes a version of the gallery's
image. As often as you like: what is there is not made again, what broke off is gone on with, and a
version's number never stands for another disk. Prints the version's id, for the machine block.
"""

import argparse
import base64
import re
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aicert.agent import azure_identity
from aicert.agent.azure_vm import (
    DIGEST_TAG,
    ENDPOINT,
    POLL_SECONDS,
    ConfigError,
    ConflictError,
    LibraryError,
    explained,
    word,
)
from aicert.errors import Error, install
from deployments.azure.vhd import FixedVhd

API = "2025-03-03"
SECURITY = "TrustedLaunchAndConfidentialVmSupported"
CHUNK = 4 << 20
"""The most that one request may write into a page blob."""

_AT_ONCE = 8
_DONE = "aicert_complete"
_ID = r"/subscriptions/([0-9a-fA-F-]{36})/resourceGroups/([\w.()-]+)/providers"
_GALLERY = re.compile(rf"{_ID}/Microsoft\.Compute/galleries/([\w.]+)")
_ACCOUNT = re.compile(rf"{_ID}/Microsoft\.Storage/storageAccounts/([a-z0-9]{{3,24}})")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

Say = Callable[[str], None]


class VersionTakenError(ConflictError):
    """The version's number stands for another disk."""

    code = "azure-image.version-taken"


class OtherKindError(ConflictError):
    """The gallery has an image by this name that cannot hold such disks."""

    code = "azure-image.other-kind"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an image goes: the gallery and the storage account by their ids, and its names.

    `certificates` (DER) are those of keys that may sign what boots, besides Azure's own; `blobs` is
    the address of the account's blobs where it is not the usual one.
    """

    gallery: str
    account: str
    location: str
    version: str
    image: str = "aicert"
    regions: tuple[str, ...] = ()
    container: str = "images"
    certificates: tuple[bytes, ...] = ()
    endpoint: str = ENDPOINT
    blobs: str | None = None

    def check(self) -> None:
        """Find every mistake that needs no question to Azure.

        Raises:
            ConfigError: there are some.
        """
        forms: tuple[tuple[str, re.Pattern[str], str], ...] = (
            ("gallery", _GALLERY, "the id of a compute gallery"),
            ("account", _ACCOUNT, "the id of a storage account"),
            ("version", _VERSION, "three numbers, such as 1.0.0"),
            ("location", re.compile(r"[a-z0-9]{2,40}"), "a region, such as westeurope"),
            ("image", re.compile(r"[\w.-]{1,80}"), "a name"),
        )
        mistakes = [
            f"{name}: {getattr(self, name)!r} is not {what}"
            for name, form, what in forms
            if not form.fullmatch(getattr(self, name))
        ]
        if mistakes:
            raise ConfigError(
                f"there are {len(mistakes)} mistake(s)",
                got="; ".join(mistakes),
                advice="`az … show --query id` gives the ids",
            )

    @property
    def id(self) -> str:
        """The id of the version."""
        return f"{self.gallery}/images/{self.image}/versions/{self.version}"


def publish(
    disk: Path,
    target: Target,
    credential: Any = None,
    *,
    blob_credential: Any = None,
    say: Say = lambda _: None,
    poll: float = POLL_SECONDS,
    **options: Any,
) -> str:
    """Publish a disk as a version of a gallery's image; return the version's id.

    Args:
        disk: the raw disk.
        target: where it goes.
        credential: by default the caller's identity, as azure-identity finds it.
        blob_credential: for the blobs, where it is another.
        say: is told how it goes.
        poll: seconds between two looks at what takes a while.
        options: for the libraries' clients.

    Raises:
        VersionTakenError: the version is there, and is another disk.
        OtherKindError: the image is there, and is of another kind.
        AzureVmError: Azure did not do it; what is there stays, and may be gone on with.
    """
    target.check()
    try:
        from azure.mgmt.compute import ComputeManagementClient
        from azure.storage.blob import BlobClient

        if credential is None:
            credential = azure_identity.find()
    except ImportError as error:
        raise LibraryError(
            "the libraries for Azure are not installed",
            got=error,
            advice=install("azure"),
        ) from error
    subscription, group, gallery = _GALLERY.fullmatch(target.gallery).groups()  # type: ignore[union-attr]
    client: Any = ComputeManagementClient(
        credential,
        subscription,
        base_url=target.endpoint,
        credential_scopes=[f"{target.endpoint}/.default"],
        polling_interval=poll,
        **options,
    )
    place = (group, gallery, target.image)
    vhd = FixedVhd(disk)
    say(f"{disk}: {vhd.virtual_size >> 20} MiB, sha256:{vhd.sha256} as a VHD")
    with explained(f"version {target.version}"):
        if _is_there(client, place, target, vhd):
            say(f"{target.id} is there")
            return target.id
    name = target.account.rpartition("/")[2]
    account = target.blobs or f"https://{name}.blob.core.windows.net"
    blob: Any = BlobClient(
        account,
        target.container,
        f"{vhd.sha256}.vhd",
        credential=blob_credential or credential,
    )
    with explained(f"the blob {blob.url}"):
        upload(blob, vhd, say)
    with explained(f"the image {target.image}"):
        _see_to_definition(client, place, target, say)
    with explained(f"version {target.version}"):
        say(f"making {target.id}; this may take half an hour")
        client.gallery_image_versions.begin_create_or_update(
            *place, target.version, _version(target, vhd, blob.url), api_version=API
        ).result()
    say(f"{target.id} is made")
    return target.id


def upload(blob: Any, vhd: FixedVhd, say: Say = lambda _: None) -> None:
    """Upload a VHD as a page blob, several pieces at a time, zeros left out.

    Each piece goes with its MD5, which the service checks. What is marked as complete is left as it
    is; what broke off is written again, by the same bytes, for the blob is named by its digest.
    """
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

    if blob.exists():
        about = blob.get_blob_properties()
        if about.size != vhd.size or about.blob_type != "PageBlob":
            raise ConflictError(
                "there is another blob by this name",
                got=f"{about.blob_type} of {about.size} bytes",
                expected=f"PageBlob of {vhd.size} bytes",
                advice="delete it: nobody but this program should write there",
            )
        if about.metadata.get(_DONE) == "yes":
            say("it has been uploaded before")
            return
        say("an upload that broke off is gone on with")
    else:
        try:
            blob.create_page_blob(vhd.size, match_condition=MatchConditions.IfMissing)
        except (ResourceExistsError, ResourceModifiedError):
            pass  # by somebody else, just now; the same bytes
    sent = 0
    pending: set[Future[int]] = set()

    def put(offset: int, data: bytes) -> int:
        blob.upload_page(data, offset, len(data), validate_content=True)
        return len(data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for offset, data in vhd.chunks(CHUNK):
                if len(pending) >= _AT_ONCE:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    sent += sum(future.result() for future in done)
                    say(f"{sent >> 20} MiB sent")
                pending.add(pool.submit(put, offset, data))
            for future in pending:
                future.result()
        finally:
            for future in pending:
                future.cancel()
    blob.set_blob_metadata({_DONE: "yes"})


def _is_there(client: Any, place: tuple[str, str, str], target: Target, vhd: FixedVhd) -> bool:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        found = client.gallery_image_versions.get(*place, target.version, api_version=API)
    except ResourceNotFoundError:
        return False
    digest = (found.tags or {}).get(DIGEST_TAG)
    if digest != vhd.sha256:
        raise VersionTakenError(
            VersionTakenError.__doc__ or "",
            got=f"{target.id}: sha256:{digest}",
            expected=f"sha256:{vhd.sha256}",
            advice="choose another number: whoever trusts a version trusts its bytes",
        )
    state = word(found.provisioning_state)
    if state == "Failed":
        raise ConflictError(
            "an earlier attempt to make this version has failed",
            got=target.id,
            advice="delete the version (az sig image-version delete), and try again",
        )
    if state in ("Creating", "Updating"):
        raise ConflictError(
            "this version is just being made", got=target.id, advice="wait, and look again"
        )
    return True


def _see_to_definition(client: Any, place: tuple[str, str, str], target: Target, say: Say) -> None:
    from azure.core.exceptions import ResourceNotFoundError

    wanted = _definition(target)
    try:
        found = client.gallery_images.get(*place, api_version=API)
    except ResourceNotFoundError:
        say(f"making the image {target.image}")
        client.gallery_images.begin_create_or_update(*place, wanted, api_version=API).result()
        return
    features = {item.name: item.value for item in found.features or ()}
    got = {
        "osType": word(found.os_type),
        "osState": word(found.os_state),
        "hyperVGeneration": word(found.hyper_v_generation),
        "SecurityType": features.get("SecurityType"),
    }
    properties = wanted["properties"]
    expected = {name: properties[name] for name in ("osType", "osState", "hyperVGeneration")}
    expected["SecurityType"] = SECURITY
    if got != expected:
        raise OtherKindError(
            OtherKindError.__doc__ or "",
            got=", ".join(f"{name}: {value}" for name, value in got.items()),
            expected=", ".join(f"{name}: {value}" for name, value in expected.items()),
            advice="choose another name (--image)",
        )


def _definition(target: Target) -> dict[str, Any]:
    return {
        "location": target.location,
        "properties": {
            "osType": "Linux",
            # It has no user, and asks for none: nothing is provisioned in it.
            "osState": "Specialized",
            "hyperVGeneration": "V2",
            "architecture": "x64",
            "identifier": {"publisher": "aicert", "offer": target.image, "sku": "measured"},
            "features": [
                {"name": "SecurityType", "value": SECURITY},
                {"name": "DiskControllerTypes", "value": "SCSI, NVMe"},
            ],
        },
    }


def _version(target: Target, vhd: FixedVhd, url: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "publishingProfile": {
            "targetRegions": [
                {"name": region, "regionalReplicaCount": 1, "storageAccountType": "Standard_LRS"}
                for region in dict.fromkeys((target.location, *target.regions))
            ]
        },
        "storageProfile": {
            "osDiskImage": {
                "hostCaching": "ReadOnly",
                "source": {"storageAccountId": target.account, "uri": url},
            }
        },
    }
    if target.certificates:
        keys = [base64.b64encode(der).decode() for der in target.certificates]
        properties["securityProfile"] = {
            "uefiSettings": {
                "signatureTemplateNames": ["MicrosoftUefiCertificateAuthorityTemplate"],
                "additionalSignatures": {"db": [{"type": "x509", "value": keys}]},
            }
        }
    return {
        "location": target.location,
        "tags": {DIGEST_TAG: vhd.sha256},
        "properties": properties,
    }


def main(arguments: list[str] | None = None) -> int:
    """Publish a disk, and print the version's id."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("disk", type=Path, help="the raw disk: what deployments.image.build prints")
    parser.add_argument("--version", required=True, help="three numbers; never used twice")
    parser.add_argument("--location", required=True, help="the gallery's region")
    parser.add_argument("--gallery", required=True, help="the gallery's id")
    parser.add_argument("--account", required=True, help="the storage account's id")
    parser.add_argument("--container", default="images", help="the container for the disk")
    parser.add_argument("--image", default="aicert", help="the image's name in the gallery")
    parser.add_argument("--region", action="append", default=[], help="one more region")
    parser.add_argument(
        "--certificate", type=Path, action="append", default=[],
        help="of a key (PEM) that signed the image, for secure boot",
    )  # fmt: skip
    parser.add_argument("--endpoint", default=ENDPOINT, help="where Azure is asked")
    parser.add_argument("--blobs", help="the address of the account's blobs, if it is unusual")
    options = parser.parse_args(arguments)
    try:
        certificates = tuple(
            x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
            for path in options.certificate
        )
        target = Target(
            gallery=options.gallery,
            account=options.account,
            location=options.location,
            version=options.version,
            image=options.image,
            regions=tuple(options.region),
            container=options.container,
            certificates=certificates,
            endpoint=options.endpoint,
            blobs=options.blobs,
        )
        print(publish(options.disk, target, say=lambda text: print(text, file=sys.stderr)))
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except Error as error:
        print(error.diagnostics(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
