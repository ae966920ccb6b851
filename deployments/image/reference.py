"""Write the signed reference values of the image: what a machine that boots it measures.

    python -m deployments.image.reference [--key KEY] [--out FILE] [--memory MIB …] [--cpus N …]

What can be foretold from the image's files is foretold; the firmware's own PCRs are recorded by
booting each shape of machine; and that boot must show everything else to be as foretold. Beside the
document goes a policy that asks for it.
"""

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aicert import bootlog, keys, reference, tpm2
from aicert.agent import machine, qemu
from aicert.agent.places import default_state
from aicert.events import PCR_CHANNEL
from deployments.image import build, predict

ZERO = frozenset({12, 13})
SECURE_BOOT, IMA = 7, 10
NOTES = (
    "PCRs 0 and 1 (firmware, boot variables) were recorded by booting; 7 (secure boot and its "
    "keys) and 10 (Linux's digest of PCRs 0 to 9; with secure boot its modules too, and recorded) "
    "follow from the machine; 2 to 6, 9 and 11 from the image's files; 12 and 13 are zero, as "
    "nothing is handed to the image from outside. None is left open."
)

Pcrs = Mapping[int, bytes]


def boot(image: qemu.Image, shape: qemu.Shape) -> tuple[Pcrs, bytes]:
    """Boot the image on a machine of this shape; return its PCRs and the firmware's log.

    They are those at the start of a run: before the key of the agent's channel was measured.
    """
    with tempfile.TemporaryDirectory(prefix="aicert-") as state:
        config = machine.MachineConfig(
            kind="qemu",
            state=Path(state),
            image=image.folder,
            memory=shape.memory,
            cpus=shape.cpus,
        )
        handle = machine.start(config, secrets.token_hex(8))
        try:
            with machine.attach(handle) as client:
                ak = tpm2.parse_public(client.identity().ak_public)
                answer = client.attest(handle.channel, ak)
        finally:
            machine.destroy(handle)
    assert answer.boot_event_log is not None
    return {**answer.pcrs, PCR_CHANNEL: bytes(32)}, answer.boot_event_log


def _ima(image: qemu.Image, pcrs: Pcrs) -> bytes:
    """Return PCR 10. Under secure boot Linux measures its modules there too, so it is recorded."""
    return pcrs[IMA] if image.secure_boot else predict.ima(pcrs)


def surprises(image: qemu.Image, pcrs: Pcrs, event_log: bytes) -> list[str]:
    """Return what a boot shows that was not foretold; nothing, if all is well."""
    foretold = {pcr: image.foretold(pcr) for pcr in image.pcrs}
    foretold |= {IMA: (_ima(image, pcrs),), **dict.fromkeys(ZERO, (bytes(32),))}
    found = [
        f"PCR {pcr} is {pcrs[pcr].hex()}, not {' or '.join(value.hex() for value in values)}"
        for pcr, values in sorted(foretold.items())
        if pcrs[pcr] not in values
    ]
    replayed = bootlog.parse(event_log).replay()
    found += [
        f"the firmware's log gives another PCR {pcr}"
        for pcr in range(8)
        if replayed.get(pcr) != pcrs[pcr]
    ]
    return found


def document(
    image: qemu.Image, version: str, shapes: Mapping[str, Pcrs], issued_on: datetime
) -> reference.ReferenceValues:
    """Return the reference values of an image, by the PCRs that its boots on shapes showed."""
    return reference.ReferenceValues(
        image=image.name,
        version=version,
        issued_on=issued_on,
        pcrs={pcr: value for pcr, value in image.pcrs.items() if pcr != SECURE_BOOT},
        events={},
        zero=ZERO,
        shapes=tuple(
            reference.Shape(
                name,
                {
                    0: pcrs[0],
                    1: pcrs[1],
                    SECURE_BOOT: pcrs[SECURE_BOOT],
                    IMA: _ima(image, {**pcrs, **image.pcrs, SECURE_BOOT: pcrs[SECURE_BOOT]}),
                },
                {},
                frozenset(),
            )
            for name, pcrs in shapes.items()
        ),
        notes=NOTES,
    )


def policy(signer: str, document: str) -> str:
    """Return a policy file that demands a boot of this document's image."""
    return (
        "# Beside a root that you trust to certify TPMs: --hardware-root FILE, or `trust` here.\n"
        "policy: 1\n"
        "name: measured\n"
        "assurance: measured\n"
        "reference:\n"
        f"  signers: [{signer}]\n"
        "  documents:\n"
        f"    - file: {document}\n"
    )


def open_key(path: Path) -> keys.PrivateKey:
    """Return the publisher's key in a file; where there is none, a new one (ECDSA on P-256)."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(pem)
    return keys.load_private_key(path)


def main() -> None:
    """Boot, compare, sign, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    state = default_state()
    parser.add_argument("--key", type=Path, default=state / "reference-key.pem", help="signs it")
    parser.add_argument("--out", type=Path, help="default: beside the image")
    parser.add_argument("--image", type=Path, help="folder; default: what `make image` makes")
    shape = qemu.Shape()
    parser.add_argument("--memory", type=int, nargs="+", default=[shape.memory], help="MiB")
    parser.add_argument("--cpus", type=int, nargs="+", default=[shape.cpus])
    options = parser.parse_args()
    folder = options.image or build.build()
    image = qemu.Image.load(folder)
    out = options.out or folder / "reference.json"
    booted = {}
    for shape in (qemu.Shape(memory, cpus) for memory in options.memory for cpus in options.cpus):
        name = shape.name(image.firmware)
        print(f"Booting {image.name} on {name} …", flush=True)
        booted[name] = pcrs, event_log = boot(image, shape)
        if found := surprises(image, pcrs, event_log):
            sys.exit("\n".join(["The boot is not as foretold:", *found]))
    values = document(
        image,
        build.version_of(folder),
        {name: pcrs for name, (pcrs, _) in booted.items()},
        datetime.now(UTC).replace(microsecond=0),
    )
    key = open_key(options.key)
    signed = reference.sign(values, key)
    for name, (pcrs, event_log) in booted.items():
        result = reference.check_boot(event_log, pcrs, [reference.parse(signed)])
        if not result.measured:
            sys.exit(f"The boot on {name} does not match its reference values: {result.nearest}")
    out.write_bytes(signed)
    out.with_suffix(".policy.yaml").write_text(policy(keys.fingerprint(key), out.name))
    for line in result.pcrs:
        print(line)
    print(f"{out}\n{out.with_suffix('.policy.yaml')}\nsigned by {keys.fingerprint(key)}")


if __name__ == "__main__":
    main()
