"""Write the signed reference values of the image in Azure, by what first boots there measured.

Usage: python -m deployments.azure.reference --boot SHAPE CERTIFICATE [--boot …]
           [--image FOLDER] [--key KEY] [--out FILE]

What tells the image from another (PCRs 4, 9, 11, 12 and 13) is foretold from its files, and a boot
that shows anything else is refused. What Azure's firmware measures of itself cannot be foretold: it
is taken from the certificates of those boots, one for each kind of machine, such as a size in a
region. Whoever signs this believes of these boots, besides Azure, that nobody was in the firmware.
Beside the document goes a policy that asks for it.

What is known of the firmware is in Microsoft's source of it, github.com/microsoft/mu_msvm:
MsvmPkg/VmMeasurementDxe extends each machine's own id into PCR 6, which is thus another on every
machine, and with it PCR 10; MsvmPkg/PlatformPei/Config.c lets the version of the virtual hardware
decide whether the calling of a boot option is extended into PCR 4.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from aicert import keys, reference
from aicert.agent import qemu
from aicert.agent.places import default_state
from aicert.errors import Error
from aicert.reference import Shape
from aicert.trust import TrustStore
from aicert.verify import Verdict, verify
from deployments.image import build, formats, predict
from deployments.image.reference import open_key

ZERO = frozenset({12, 13})
EVERYWHERE = (9, 11)
RECORDED = (0, 1, 2, 3, 5, 7)
"""The firmware, its settings and keys, and the table of the disk as it finds it."""

OPEN = frozenset({6, 10})
"""The machine's own id, and Linux's digest of PCRs 0 to 9, which holds it too."""

NOTES = (
    "PCRs 4, 9 and 11 follow from the image's files; 12 and 13 are zero, as nothing is handed to "
    "the image from outside. PCRs 0, 1, 2, 3, 5 and 7 (firmware, its settings, secure boot, the "
    "disk's table) were recorded from one boot of each kind of machine. PCR 6 holds the machine's "
    "own id, and PCR 10 is Linux's digest of PCRs 0 to 9: these two are left open."
)


class OtherBootError(Error):
    """A certificate shows the boot of something else, or a TPM that nobody vouches for."""

    code = "azure-image.other-boot"


def document(
    image: qemu.Image, version: str, boots: Mapping[str, Verdict], issued_on: datetime
) -> reference.ReferenceValues:
    """Return the reference values of an image, by the verdicts on its boots, each of one shape.

    Raises:
        OtherBootError: one of them is not a boot of this image.
    """
    foretold = {pcr: {image.pcrs[pcr]} for pcr in EVERYWHERE}
    foretold[4] = loaders((image.folder / "image.efi").read_bytes())
    foretold |= {pcr: {bytes(32)} for pcr in ZERO | reference.RUN_PCRS}
    for shape, verdict in boots.items():
        pcrs = verdict.certificate.baseline_quote.pcrs
        if others := [pcr for pcr, values in sorted(foretold.items()) if pcrs[pcr] not in values]:
            raise OtherBootError(
                f"the boot of {shape} is not one of {image.name} {version}",
                got="; ".join(f"PCR {pcr} {pcrs[pcr].hex()}" for pcr in others),
                expected="; ".join(
                    f"PCR {pcr} {' or '.join(sorted(value.hex() for value in foretold[pcr]))}"
                    for pcr in others
                ),
                advice="give the image that was published (--image), and the certificate of a run "
                "on a machine that booted it",
            )
    return reference.ReferenceValues(
        image=image.name,
        version=version,
        issued_on=issued_on,
        pcrs={pcr: image.pcrs[pcr] for pcr in EVERYWHERE},
        events={},
        zero=ZERO,
        shapes=tuple(
            Shape(
                shape,
                {pcr: verdict.certificate.baseline_quote.pcrs[pcr] for pcr in (4, *RECORDED)},
                {},
                OPEN,
            )
            for shape, verdict in boots.items()
        ),
        notes=NOTES,
    )


def loaders(uki: bytes) -> set[bytes]:
    """Return the PCRs 4 that a boot of this unified kernel image may give.

    Firmware says that it calls a boot option, or not; the kernel inside is measured as well, but
    not where secure boot is on, and the image's signature covers it. The image is in all of them.
    """
    outer = formats.authenticode(uki)
    inner = formats.authenticode(formats.pe_sections(uki)[".linux"])
    return {
        predict.extend([*called, predict.SEPARATOR, outer, *kernel])
        for called in ([predict.CALLING], [])
        for kernel in ([inner], [])
    }


def policy(signer: str, document: str, boots: Mapping[str, Verdict]) -> str:
    """Return a policy file that demands such a boot, and the roots that vouched for these."""
    cpu = all(v.confidential is not None and v.confidential.firmware_known for v in boots.values())
    roots = sorted({verdict.chain.pin.fingerprint for verdict in boots.values()})
    return (
        "policy: 1\n"
        f"name: {'confidential' if cpu else 'measured'}\n"
        f"assurance: {'confidential' if cpu else 'measured'}\n"
        f"roots: {json.dumps(roots)}\n"
        "reference:\n"
        f"  signers: [{signer}]\n"
        "  documents:\n"
        f"    - file: {document}\n"
    )


def write(
    image: qemu.Image,
    version: str,
    certificates: Mapping[str, bytes],
    out: Path,
    key: keys.PrivateKey,
    trust: TrustStore | None = None,
) -> None:
    """Verify the certificates, sign the document, and write it with its policy.

    Raises:
        Error: a certificate is refused, is worth less than `hardware`, or is of another boot.
    """
    store = trust or TrustStore.builtin()
    boots = {shape: verify(data, trust=store) for shape, data in certificates.items()}
    now = datetime.now(UTC).replace(microsecond=0)
    signed = reference.sign(document(image, version, boots, now), key)
    out.write_bytes(signed)
    signer = keys.fingerprint(key)
    out.with_suffix(".policy.yaml").write_text(policy(signer, out.name, boots))


def main(arguments: list[str] | None = None) -> int:
    """Write the document and its policy, and print where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--boot", nargs=2, action="append", required=True, metavar=("SHAPE", "CERTIFICATE"),
        help="a kind of machine, such as 'Standard_D8s_v5 westeurope', and what one certified",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, default=qemu.default_image(), help="its folder")
    key = default_state() / "reference-key.pem"
    parser.add_argument("--key", type=Path, default=key, help="signs it; made where there is none")
    parser.add_argument("--out", type=Path, default=Path("azure.json"))
    options = parser.parse_args(arguments)
    try:
        write(
            qemu.Image.load(options.image),
            build.version_of(options.image),
            {shape: Path(path).read_bytes() for shape, path in options.boot},
            options.out,
            open_key(options.key),
        )
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except Error as error:
        print(error.diagnostics(), file=sys.stderr)
        return 1
    print(f"{options.out}\n{options.out.with_suffix('.policy.yaml')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
