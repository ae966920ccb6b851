"""Attested TLS: how the agent of another machine is known to be the one in front of its TPM.

At boot the agent makes a key for its TLS server and measures it: the event `channelKey` goes into
PCR 15, before anything is asked of it. A caller takes the certificate that the server shows, has
the TPM quote PCR 15 with a nonce of the caller's, and so learns whose channel this is before it
sends anything. Whoever stands between shows a certificate that no quote speaks for.

Where the machine was made for the caller, its maker can give it a secret that both know: then the
agent belongs to that caller alone, and shows that it runs on that machine and on no other.

Both ends are here, and nothing of any cloud or hypervisor. The certificate is only a wrapping for
its key: no name, no date and no issuer in it counts.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from aicert import events, tpm2
from aicert.bootlog import MAX_BYTES as MAX_BOOT_LOG
from aicert.errors import Error
from aicert.reader import Reader

NONCE_BYTES = 32
CONNECT_SECONDS = 10.0

_DOMAIN = b"aicert channel v1\0"
_MAX_STRUCTURE = 2048


class ChannelError(Error):
    """The channel to the agent cannot be relied on."""

    code = "channel.failed"


class UnreachableError(ChannelError):
    """Nothing answers at this address, or what answers does not speak TLS."""

    code = "channel.unreachable"


class ReplayedError(ChannelError):
    """The quote was not made for this question."""

    code = "channel.replayed"


class NotMeasuredError(ChannelError):
    """The TPM does not vouch for the key of this channel."""

    code = "channel.not-measured"


class ClaimedError(ChannelError):
    """The agent belongs to another caller."""

    code = "channel.claimed"


class OtherMachineError(ChannelError):
    """The agent does not know the secret that the machine was made with."""

    code = "channel.other-machine"


class TokenError(ChannelError):
    """The caller did not show the token of the one whom the agent belongs to."""

    code = "channel.token"


def binding(nonce: bytes, spki: str) -> bytes:
    """Return the extraData of a channel's quote: 32 bytes, from nonce and key (SHA-256, hex).

    The prefix keeps it apart from the extraData of every other quote: no caller can have a quote
    made that passes for that of a run.
    """
    return hashlib.sha256(_DOMAIN + nonce + bytes.fromhex(spki)).digest()


def owner_token(secret: bytes, spki: str) -> str:
    """Return the token of the one who gave a machine this secret; good for this channel alone.

    So whoever stands between and is shown it can do nothing with it.
    """
    return hmac.digest(secret, b"aicert owner v1\0" + bytes.fromhex(spki), "sha256").hex()


def machine_proof(secret: bytes, nonce: bytes, spki: str) -> bytes:
    """Return what only an agent on the machine that was given this secret can answer."""
    return hmac.digest(secret, b"aicert machine v1\0" + nonce + bytes.fromhex(spki), "sha256")


def spki_digest(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo (DER), in hex."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


# -- the agent's end -----------------------------------------------------------------------------


class ChannelKey:
    """The key of the agent's TLS server: made at boot, never written down, gone with the agent."""

    def __init__(self) -> None:
        """Make a key (P-256) and the certificate that wraps it."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aicert agent")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            # No date: the key lives as long as the boot, and clocks differ (RFC 5280, 4.1.2.5).
            .not_valid_before(datetime(1970, 1, 1))  # noqa: DTZ001 - X.509 has no zones
            .not_valid_after(datetime(9999, 12, 31, 23, 59, 59))  # noqa: DTZ001
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(Encoding.DER)
        self.spki = spki_digest(self.certificate)

    @property
    def event(self) -> events.ChannelKey:
        """What is measured of it."""
        return events.ChannelKey(self.spki)

    def context(self) -> ssl.SSLContext:
        """Return the server's side of TLS 1.3 with this key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The library reads keys from files alone; this one is in memory.
        descriptor = os.memfd_create("channel", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:
            file.write(
                self._key.private_bytes(
                    Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            file.write(ssl.DER_cert_to_PEM_cert(self.certificate).encode())
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return context


# -- what goes over it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attestation:
    """The agent's answer: a quote (TPMS_ATTEST, TPMT_SIGNATURE, PCRs) and the boot event log.

    `proof` shows which machine it comes from, where that was made with a secret. Nothing in it is
    authenticated before `check`.
    """

    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    boot_event_log: bytes | None
    proof: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        log = self.boot_event_log
        return {
            "message": _text(self.message),
            "signature": _text(self.signature),
            "pcrs": {str(pcr): value.hex() for pcr, value in self.pcrs.items()},
            "bootEventLog": None if log is None else _text(log),
            "proof": None if self.proof is None else self.proof.hex(),
        }

    @classmethod
    def from_json(cls, value: Any) -> "Attestation":
        """Read the JSON form; nothing is trusted."""
        reader = Reader(value, "attestation", ChannelError)
        pcrs = reader.child("pcrs")
        values = {pcr: pcrs.octets(str(pcr), 32) for pcr in range(24) if pcrs.has(str(pcr))}
        pcrs.done()
        none = reader.null("bootEventLog")
        attestation = cls(
            reader.octets64("message", max_bytes=_MAX_STRUCTURE),
            reader.octets64("signature", max_bytes=_MAX_STRUCTURE),
            values,
            None if none else reader.octets64("bootEventLog", max_bytes=MAX_BOOT_LOG),
            None if reader.null("proof") else reader.octets("proof", 32),
        )
        reader.done()
        return attestation

    def check(
        self, ak: tpm2.Public, nonce: bytes, spki: str, secret: bytes | None = None
    ) -> Mapping[int, bytes]:
        """Check that the TPM vouches, now, for the key of this channel; return the PCRs.

        Args:
            ak: the attestation key, which the caller knows to live in the machine's TPM.
            nonce: what the caller asked with; fresh.
            spki: the key that the server showed (SHA-256 of its SubjectPublicKeyInfo, in hex).
            secret: what the machine was given when it was made; None asks for no proof of it.

        Raises:
            OtherMachineError: the agent runs on another machine.
            ReplayedError: the quote is for another nonce, or another channel's.
            NotMeasuredError: PCR 15 does not hold this key and nothing else.
            Error: (of `aicert.tpm2`) the quote is not one of that key, or its PCRs are others.
        """
        if secret is not None and not hmac.compare_digest(
            machine_proof(secret, nonce, spki), self.proof or b""
        ):
            raise OtherMachineError(
                "this agent runs on another machine than the one that was made for the run",
                advice="somebody stands between, or another machine has its address: start anew",
            )
        attest = tpm2.check_quote(self.message, self.signature, ak)
        if attest.extra_data != binding(nonce, spki):
            raise ReplayedError(
                "the quote was not made for this channel and this nonce",
                got=attest.extra_data,
                expected=binding(nonce, spki),
                advice="somebody stands between, or plays an old answer back: use another machine",
            )
        attest.check_pcrs(self.pcrs)
        expected = hashlib.sha256(bytes(32) + events.event_digest(events.ChannelKey(spki))).digest()
        got = self.pcrs.get(events.PCR_CHANNEL)
        if got != expected:
            raise NotMeasuredError(
                f"PCR {events.PCR_CHANNEL} does not hold the key of this channel",
                got="no quoted value" if got is None else got,
                expected=expected,
                advice="something other than the agent answers: use another machine",
            )
        return self.pcrs


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# -- the caller's end ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """An agent's channel: where it is, the one certificate to accept (DER), and whose it is.

    `token` is what the agent wants to see of its owner; whoever has it can act as the owner.
    """

    host: str
    port: int
    certificate: bytes
    token: str

    @classmethod
    def find(cls, host: str, port: int, secret: bytes | None = None) -> "Remote":
        """Take the certificate that is shown there. It means nothing until a quote speaks for it.

        `secret` is what the machine was given when it was made, if it was.

        Raises:
            UnreachableError: no TLS server answers.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection((host, port), CONNECT_SECONDS) as plain,
                context.wrap_socket(plain) as secure,
            ):
                certificate = secure.getpeercert(binary_form=True)
        except OSError as error:
            raise UnreachableError(
                "the agent's channel cannot be reached", got=f"{host}:{port}: {error}"
            ) from error
        assert certificate is not None
        if secret is None:
            return cls(host, port, certificate, secrets.token_hex(32))
        return cls(host, port, certificate, owner_token(secret, spki_digest(certificate)))

    @property
    def spki(self) -> str:
        """The SHA-256 of the channel's key, in hex."""
        return spki_digest(self.certificate)

    @cached_property
    def context(self) -> ssl.SSLContext:
        """The client's side of TLS 1.3, which accepts that one certificate and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the key is pinned, whatever name it goes by
        context.load_verify_locations(cadata=self.certificate)
        return context

    def save(self, path: Path) -> None:
        """Write it to a new file that only this user can read."""
        value = {
            "host": self.host,
            "port": self.port,
            "certificate": _text(self.certificate),
            "token": self.token,
        }
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(value, file)

    @classmethod
    def load(cls, path: Path) -> "Remote":
        """Read what `save` wrote."""
        reader = Reader(json.loads(path.read_text("ascii")), "channel", ChannelError)
        remote = cls(
            reader.text("host"),
            reader.integer("port", low=1, high=65535),
            reader.octets64("certificate", max_bytes=_MAX_STRUCTURE),
            reader.text("token", max_length=64),
        )
        reader.done()
        return remote
