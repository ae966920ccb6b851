"""The roots: which are built in, what may be added, and what may not."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aicert.trust import Pin, TrustError, TrustStore, fingerprint, load_certificates
from tests.support.forger import Authority

ONE, TWO = Authority(name="one"), Authority(name="two")
PRINT = fingerprint(ONE.root)


def root(**options: Any) -> x509.Certificate:
    """A certificate for ONE's key; a root unless told otherwise."""
    given = {"subject": "one root", "issuer": "one root", "by": ONE.root_key, "ca": True}
    return ONE.certify(ONE.root_key.public_key(), **{**given, **options})


def write(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return path


def test_the_built_in_roots_are_the_three_known_ones_and_vouch_for_hardware() -> None:
    assert {(pin.name, pin.fingerprint, pin.assurance) for pin in TrustStore.builtin().list()} == {
        (
            "Azure Virtual TPM Root Certificate Authority 2023",
            "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
            "hardware",
        ),
        (
            "Google EK/AK CA Root",
            "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
            "hardware",
        ),
        (
            "Google tpm_ek_root_1",
            "9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf",
            "hardware",
        ),
    }


def test_an_empty_store_trusts_nobody() -> None:
    assert TrustStore().list() == ()
    assert TrustStore().find(PRINT) is None


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER], ids=["pem", "der"])
def test_a_root_of_ones_own_is_simulated_unless_said_otherwise(
    encoding: Encoding, tmp_path: Path
) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(ONE.root.public_bytes(encoding))
    assert TrustStore().with_roots(path).find(PRINT) == Pin(
        "one root", PRINT, "simulated", str(path)
    )
    pin = TrustStore().with_roots(path, assurance="hardware").find(PRINT)
    assert pin is not None
    assert pin.assurance == "hardware"


def test_a_file_may_hold_several_roots_and_words_around_them(tmp_path: Path) -> None:
    path = write(tmp_path / "roots.pem", ONE.root, TWO.root)
    path.write_bytes(b"# our roots\n" + path.read_bytes())
    assert {pin.fingerprint for pin in TrustStore().with_roots(path).list()} == {
        PRINT,
        fingerprint(TWO.root),
    }


def test_a_folder_gives_the_roots_of_its_certificate_files(tmp_path: Path) -> None:
    write(tmp_path / "a.pem", ONE.root)
    (tmp_path / "B.DER").write_bytes(TWO.root.public_bytes(Encoding.DER))
    (tmp_path / "README.md").write_text("no certificate")
    assert [pin.name for pin in TrustStore().with_roots(tmp_path).list()] == [
        "one root",
        "two root",
    ]


def test_adding_gives_another_store_and_nothing_can_be_changed(tmp_path: Path) -> None:
    store = TrustStore.builtin()
    more = store.with_roots(write(tmp_path / "root.pem", ONE.root))
    assert (len(store.list()), len(more.list())) == (3, 4)
    pin = more.find(PRINT)
    assert pin is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        pin.assurance = "hardware"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        store.pins = more.pins  # type: ignore[misc]
    with pytest.raises(TypeError):
        cast(dict[str, Pin], store.pins)[PRINT] = pin


def test_pins_are_listed_by_name() -> None:
    names = [pin.name for pin in TrustStore.builtin().list()]
    assert names == sorted(names)


def test_a_root_may_be_named_twice_but_not_with_different_worth(tmp_path: Path) -> None:
    path = write(tmp_path / "root.pem", ONE.root)
    store = TrustStore().with_roots(path).with_roots(path)
    assert len(store.list()) == 1
    with pytest.raises(TrustError, match="different worth"):
        store.with_roots(path, assurance="hardware")


def test_a_root_that_has_expired_can_still_be_pinned(tmp_path: Path) -> None:
    """Old evidence is checked at the time of its run."""
    then = datetime(2020, 1, 1, tzinfo=UTC)
    old = root(not_before=then, not_after=then + timedelta(days=1))
    path = write(tmp_path / "root.pem", old)
    assert TrustStore().with_roots(path).find(fingerprint(old)) is not None


@pytest.mark.parametrize(
    "made",
    [
        root(subject="one intermediate"),
        root(by=TWO.root_key),
        root(ca=False),
    ],
    ids=["issued by another", "signed by another key", "not a CA"],
)
def test_what_is_not_a_root_is_refused_with_its_name_and_file(
    made: x509.Certificate, tmp_path: Path
) -> None:
    path = write(tmp_path / "roots.pem", ONE.root, made)
    with pytest.raises(TrustError) as caught:
        TrustStore().with_roots(path)
    assert caught.value.code == "trust.root"
    assert str(path) in str(caught.value.got)
    assert "one " in str(caught.value.got)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ONE.root.public_bytes(Encoding.DER) + b"\0",
        ONE.root.public_bytes(Encoding.DER)[:-1],
        ONE.root_pem[:-40],
        b"\0" * ((1 << 20) + 1),
    ],
    ids=[
        "empty",
        "text",
        "no DER",
        "no base64",
        "a key",
        "trailing",
        "cut",
        "PEM cut",
        "too large",
    ],
)
def test_a_file_that_holds_no_root_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(content)
    for load in (load_certificates, TrustStore().with_roots):
        with pytest.raises(TrustError) as caught:
            load(path)
        assert str(path) in str(caught.value.got)


def test_a_missing_file_and_an_empty_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be read") as caught:
        TrustStore().with_roots(tmp_path / "none.pem")
    assert "No such file" in str(caught.value.got)
    with pytest.raises(TrustError, match="no root certificates"):
        TrustStore().with_roots(tmp_path)
