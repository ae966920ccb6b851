"""Keys of one's own for secure boot, and the flash that holds them; tests/qemu boots with them."""

import stat
from pathlib import Path

import pytest
from cryptography import x509

from aicert.agent import qemu
from deployments.image import formats, secure_boot


def test_keys_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    keys = secure_boot.open_keys(tmp_path / "keys")
    assert secure_boot.open_keys(tmp_path / "keys") == keys
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in secure_boot.KEYS:
        assert stat.S_IMODE((tmp_path / "keys" / f"{name}.key").stat().st_mode) == 0o600
        assert x509.load_der_x509_certificate(keys[name]).subject.rfc4514_string().endswith(name)


def test_variables_go_only_into_an_empty_store(tmp_path: Path) -> None:
    empty = qemu.VARIABLES.read_bytes()
    known = {"db": formats.signature_list(b"certificate")}
    made = formats.variable_store(empty, known)
    assert len(made) == len(empty) and known["db"] in made
    with pytest.raises(ValueError, match="has variables already"):
        formats.variable_store(made, known)
    with pytest.raises(ValueError, match="no room"):
        formats.variable_store(empty, {"db": bytes(len(empty))})
    with pytest.raises(ValueError, match="no store"):
        formats.variable_store(bytes(len(empty)), known)
