"""Reference values by what first boots in Azure measured, and what verifies by them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert import policy, reference, sev, verify
from aicert.agent import qemu
from aicert.assurance import Assurance
from aicert.errors import Error
from aicert.trust import TrustStore
from deployments.azure import reference as module
from deployments.azure.reference import OtherBootError, main
from deployments.image import formats, predict
from deployments.image.reference import open_key
from tests.support import snp
from tests.support.boot import SEPARATOR, Boot, digest
from tests.support.forger import Forger
from tests.support.snp import Amd

SHAPE = "Standard_D8s_v5 westeurope"


def program(text: bytes, sections: dict[str, bytes]) -> bytes:
    """A PE file as UEFI runs them, of this text, with more sections."""
    head = bytearray(0x400)
    head[:2], head[0x3C:0x40] = b"MZ", struct.pack("<I", 0x80)
    # x86-64, one section, an optional header of 0xf0 bytes: PE32+, with 16 directories.
    struct.pack_into("<4sHHIIIHH", head, 0x80, b"PE", 0x8664, 1, 0, 0, 0, 0xF0, 0x22)
    struct.pack_into("<H", head, 0x98, 0x20B)
    struct.pack_into("<II", head, 0x98 + 32, 0x1000, 0x200)  # alignments
    struct.pack_into("<II", head, 0x98 + 56, 0x2000, 0x400)  # sizes of image and headers
    struct.pack_into("<I", head, 0x98 + 108, 16)
    struct.pack_into("<8sIIII", head, 0x188, b".text", 0x200, 0x1000, 0x200, 0x400)
    return formats.pe_add(bytes(head) + text.ljust(0x200), sections)


KERNEL = program(b"a kernel", {})
UKI = program(b"a stub", {".cmdline": b"quiet", ".initrd": b"initrd", ".linux": KERNEL})
CALLED, *LATER = (
    predict.extend([*called, SEPARATOR, formats.authenticode(UKI), *kernel])
    for called in ([predict.CALLING], [])
    for kernel in ([formats.authenticode(KERNEL)], [])
)
BOOT = {**Boot().pcrs, 4: CALLED}


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger("rsa", start=dict(BOOT))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder of a built image, as far as it is read."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "disk.raw").touch()
    (folder / "image.efi").write_bytes(UKI)
    pcrs = {str(pcr): BOOT[pcr].hex() for pcr in (2, 3, 4, 5, 6, 9, 11)}
    about = {"name": "aicert-os", "version": "1.2.3", "disk": "ab" * 32, "pcrs": pcrs}
    (folder / "image.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def trust(forger: Forger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrustStore]:
    """Stand in for Azure's root."""
    (tmp_path / "root.pem").write_bytes(forger.authority.root_pem)
    store = TrustStore.builtin().with_roots(tmp_path / "root.pem", "hardware")
    monkeypatch.setattr(TrustStore, "builtin", lambda: store)
    yield store


def command(tmp_path: Path, image: Path, **boots: bytes) -> tuple[int, Path]:
    """Run it for certificates by their shapes; return its status, and where the document goes."""
    words = ["--image", str(image), "--key", str(tmp_path / "key.pem")]
    for number, (shape, data) in enumerate(boots.items()):
        path = tmp_path / f"certificate-{number}.json"
        path.write_bytes(data)
        words += ["--boot", shape, str(path)]
    out = tmp_path / "azure.json"
    return main([*words, "--out", str(out)]), out


def judged(data: bytes, out: Path) -> Any:
    rules = policy.Policy.load(out.with_suffix(".policy.yaml"))
    return verify.verify(data, trust=TrustStore.builtin(), policy=rules)


def test_a_run_on_the_same_image_and_kind_of_machine_is_measured_by_a_first_boot(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore, capsys: Any
) -> None:
    data = forger.certificate().encode()
    assert verify.verify(data, trust=trust).assurance is Assurance.HARDWARE
    status, out = command(tmp_path, image, **{SHAPE: data})
    assert status == 0 and str(out) in capsys.readouterr().out
    verdict = judged(data, out)
    assert verdict.assurance is Assurance.MEASURED
    (match,) = verdict.boot.matches
    assert f"aicert-os 1.2.3+{'ab' * 8}" in str(match) and SHAPE in str(match)
    values = reference.parse(out.read_bytes()).values
    assert {9, 11} == values.pcrs.keys() and values.zero == {12, 13}
    assert "what PCRs [6, 10] stand for" in " ".join(verdict.not_proved)
    # Every machine has an id of its own in PCR 6, and so in Linux's digest of PCRs 0 to 9.
    start = {**BOOT, 6: digest("another machine"), 10: digest("its boot_aggregate")}
    other = Forger("rsa", authority=forger.authority, start=start).certificate().encode()
    assert judged(other, out).assurance is Assurance.MEASURED
    # Another firmware, and another kernel, are neither.
    for pcr in (0, 1, 2, 3, 5, 7, 4, 9, 11, 12, 13):
        start = {**BOOT, pcr: digest("another")}
        other = Forger("rsa", authority=forger.authority, start=start).certificate().encode()
        with pytest.raises(policy.PolicyError) as caught:
            judged(other, out)
        assert caught.value.code == "policy.assurance"


def test_one_document_holds_for_several_kinds_of_machines(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore
) -> None:
    start = {**BOOT, 0: digest("another size")}
    other = Forger("rsa", authority=forger.authority, start=start).certificate().encode()
    data = forger.certificate().encode()
    status, out = command(tmp_path, image, **{SHAPE: data, "Standard_D16s_v5": other})
    assert status == 0
    assert judged(data, out).assurance is judged(other, out).assurance is Assurance.MEASURED


def test_confidential_machines_make_a_policy_that_demands_the_cpus_word(
    tmp_path: Path,
    image: Path,
    forger: Forger,
    trust: TrustStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    amd = Amd()
    for fingerprint, processor in amd.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)
    plain = forger.certificate()
    data = snp.with_report(plain, amd.evidence(forger.key.public_key())).encode()
    status, out = command(tmp_path, image, **{SHAPE: data})
    assert status == 0
    assert judged(data, out).assurance is Assurance.CONFIDENTIAL
    with pytest.raises(policy.PolicyError):
        judged(plain.encode(), out)  # which is `measured`, and no more
    # Firmware of somebody's own is not what holds Azure's TPMs.
    own = amd.evidence(forger.key.public_key(), id_key_digest=b"\x01" * 48)
    with pytest.raises(policy.PolicyError):
        judged(snp.with_report(plain, own).encode(), out)


@pytest.mark.parametrize("loader", LATER, ids=["kernel", "call", "both"])
def test_firmware_may_leave_out_of_pcr_4_what_is_not_the_image(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore, loader: bytes
) -> None:
    start = {**BOOT, 4: loader}
    data = Forger("rsa", authority=forger.authority, start=start).certificate().encode()
    status, out = command(tmp_path, image, **{SHAPE: data})
    assert status == 0 and judged(data, out).assurance is Assurance.MEASURED
    with pytest.raises(policy.PolicyError):  # one value for each shape all the same
        judged(forger.certificate().encode(), out)


@pytest.mark.parametrize("pcr", [4, 9, 11, 12, 13])
def test_the_boot_of_another_image_is_refused_with_what_differs(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore, pcr: int, capsys: Any
) -> None:
    start = {**BOOT, pcr: digest("another image")}
    other = Forger("rsa", authority=forger.authority, start=start).certificate().encode()
    status, out = command(tmp_path, image, **{SHAPE: other})
    assert status == 1 and not out.exists()
    said = capsys.readouterr().err
    assert OtherBootError.code in said and f"PCR {pcr} {digest('another image').hex()}" in said


def test_the_policy_believes_no_root_but_that_of_the_first_boot(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore
) -> None:
    _, out = command(tmp_path, image, **{SHAPE: forger.certificate().encode()})
    other = Forger("rsa", start=dict(BOOT))
    (tmp_path / "other.pem").write_bytes(other.authority.root_pem)
    both = trust.with_roots(tmp_path / "other.pem", "hardware")
    rules = policy.Policy.load(out.with_suffix(".policy.yaml"))
    with pytest.raises(policy.PolicyError) as caught:
        verify.verify(other.certificate().encode(), trust=both, policy=rules)
    assert caught.value.code == "policy.roots"


def test_a_software_tpm_gives_no_reference_values(
    tmp_path: Path, image: Path, forger: Forger, trust: TrustStore
) -> None:
    (tmp_path / "root.pem").write_bytes(forger.authority.root_pem)
    simulated = TrustStore({}).with_roots(tmp_path / "root.pem", "simulated")
    data = {SHAPE: forger.certificate().encode()}
    with pytest.raises(Error) as caught:
        module.write(
            qemu.Image.load(image), "1", data, tmp_path / "x.json",
            open_key(tmp_path / "key.pem"), simulated,
        )  # fmt: skip
    assert caught.value.code == "policy.assurance"
    assert not (tmp_path / "x.json").exists()


def test_what_cannot_be_read_is_said(tmp_path: Path, image: Path, capsys: Any) -> None:
    assert main(["--image", str(image), "--boot", "x", str(tmp_path / "none")]) == 2
    assert main(["--image", str(tmp_path), "--boot", "x", str(tmp_path / "none")]) == 1
    assert "make image" in capsys.readouterr().err
