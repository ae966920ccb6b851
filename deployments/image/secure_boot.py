"""Secure boot with keys of one's own: sign a built image, for a machine that boots nothing else.

    python -m deployments.image.secure_boot [--keys FOLDER] [--image FOLDER]

The three keys (PK, KEK, db) are made where there are none. Beside the signed disk goes a flash of
variables that holds them; a virtual machine that is given this folder boots with both. Whoever has
the keys can sign another image: what a verifier relies on are the measurements, as ever. PCR 7
then says that secure boot was on, and with which keys.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from aicert.agent import qemu
from aicert.agent.places import default_state
from deployments.image import build, formats, predict

KEYS = ("PK", "KEK", "db")
ESP_AT = 2048 * formats.SECTOR


def open_keys(folder: Path) -> dict[str, bytes]:
    """Return the keys' certificates (DER); keys are made where the folder has none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {name: _open_key(folder, name) for name in KEYS}


def _open_key(folder: Path, name: str) -> bytes:
    certificate = folder / f"{name}.pem"
    if not certificate.exists():
        # The firmware knows RSA with 2,048 bits and SHA-256, and no elliptic curves.
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"aicert secure boot {name}")])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Firmware has no clock to rely on.
            .not_valid_before(datetime(2000, 1, 1))  # noqa: DTZ001 - X.509 has no zones
            .not_valid_after(datetime(9999, 12, 31, 23, 59, 59))  # noqa: DTZ001
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.open(
            folder / f"{name}.key", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        with open(descriptor, "wb") as file:
            file.write(pem)
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return loaded.public_bytes(Encoding.DER)


def variables(certificates: dict[str, bytes]) -> dict[str, bytes]:
    """Return secure boot's variables on a machine that has these keys, in the firmware's order."""
    lists = {name: formats.signature_list(certificates[name]) for name in KEYS}
    return {"SecureBoot": b"\1", **lists, "dbx": b""}


def sign(image: Path, keys: Path, into: Path) -> Path:
    """Return the folder of the image, signed: one below `into`, made if need be.

    The link `secure` there then names it.

    Raises:
        SystemExit: the program that signs is not installed, or fails.
    """
    image = image.resolve()
    known = variables(open_keys(keys))
    about = json.loads((image / "image.json").read_text())
    name = hashlib.sha256(f"{about['disk']} {known['db'].hex()} {known['PK'].hex()}".encode())
    target = into / f"secure-{name.hexdigest()[:16]}"
    if not (target / "image.json").exists():
        with tempfile.TemporaryDirectory(dir=into, prefix="building-") as folder:
            made = Path(folder) / "made"
            made.mkdir()
            _sign(image, keys, known, about, made)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    build.point(into / "secure", target)
    return target


def _sign(
    image: Path, keys: Path, known: dict[str, bytes], about: dict[str, object], made: Path
) -> None:
    build.run(
        "sbsign", "--key", keys / "db.key", "--cert", keys / "db.pem",
        "--output", made / "image.efi", image / "image.efi",
    )  # fmt: skip
    uki = (made / "image.efi").read_bytes()
    disk = Path(shutil.copy(image / "disk.raw", made / "disk.raw"))
    with disk.open("r+b") as file:
        head = file.read(ESP_AT)
        file.write(build.esp(uki))
    held = {name: content for name, content in known.items() if name in KEYS}
    flash = formats.variable_store(qemu.VARIABLES.read_bytes(), held)
    (made / qemu.OWN_VARIABLES).write_bytes(flash)
    with disk.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    values = predict.pcrs(uki, head, known)
    signed = {
        "disk": digest,
        "uki": hashlib.sha256(uki).hexdigest(),
        "pcrs": {str(pcr): value.hex() for pcr, value in sorted(values.items())},
    }
    (made / "image.json").write_text(json.dumps({**about, **signed}, indent=1) + "\n")


def main() -> None:
    """Sign the image and print where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=Path, default=default_state() / "secure-boot-keys")
    parser.add_argument("--image", type=Path, help="default: what `make image` makes")
    options = parser.parse_args()
    path = sign(options.image or build.build(), options.keys, build.cache_folder())
    print(f"{path / 'disk.raw'}\nsigned with {options.keys / 'db.key'}")
    for pcr, value in json.loads((path / "image.json").read_text())["pcrs"].items():
        print(f"PCR {pcr:>2} {value}")


if __name__ == "__main__":
    main()
