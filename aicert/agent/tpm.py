"""The TPM, as the agent uses it: endorsement key, attestation key, PCRs, quotes, signatures.

The only module that speaks to a TPM. It extends PCRs 0 to 15 and no others, makes keys that cannot
leave the TPM, and leaves nothing in it but the attestation key. Clauses are those of the TCG TPM
2.0 Library, revision 1.59, unless another document is named; commands are in its Part 3.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from aicert import tpm2
from aicert.agent.tpm_errors import (
    CLASSES,
    AuthorizationError,
    BankInactiveError,
    BusyError,
    CredentialError,
    KeyLostError,
    NoEkCertificateError,
    NvError,
    PcrError,
    QuoteError,
    TpmError,
    UnfitKeyError,
    UnreachableError,
)
from aicert.errors import Error

# The library writes its own lines to stderr unless it is told not to, before it is loaded.
os.environ.setdefault("TSS2_LOG", "all+NONE")

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_PT_NV,
    TPM2_RC,
    TPM2_SE,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPML_DIGEST,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMT_HA,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMU_HA,
    PyTCTI,
    TSS2_Exception,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

Algorithm = Literal["ecc", "rsa"]
EkKind = Literal["ecc256", "ecc384", "rsa2048"]

Tcti = str | Callable[[bytes], bytes]
"""How to reach a TPM: a TCTI such as `device:/dev/tpmrm0` or `swtpm:path=SOCKET`, or a function
that gives the TPM one command and returns its response."""

LAST_PCR = 15
"""PCRs up to this one cannot be reset by anybody while the machine runs; 16 to 23 can (TCG PC
Client Platform TPM Profile, 4.6)."""

MAX_EXTRA_DATA = 64
MAX_NV_BYTES = 16 << 10

_BUFFER = 1024  # MAX_DIGEST_BUFFER: what one command takes to hash (Part 2, 10.4.8)
_PCRS_A_READ = 8  # TPML_DIGEST (Part 2, 10.9.9)
_ATTEMPTS = 5

# TCG EK Credential Profile 2.5: the NV index of the certificate (2.2.1.4, 2.2.1.5), the name of the
# template in tpm2_pytss, and the hash of the EK's policy (B.3, B.4).
_EKS: dict[EkKind, tuple[int, str, Any]] = {
    "ecc256": (0x01C0000A, "EK-ECC256", TPM2_ALG.SHA256),
    "ecc384": (0x01C00016, "EK-HIGH-ECC384", TPM2_ALG.SHA384),
    "rsa2048": (0x01C00002, "EK-RSA2048", TPM2_ALG.SHA256),
}
# PolicyC of B.6.4: PolicyAuthorizeNV, the branch of the policy of a "high range" EK that we do not
# take. Its digest is needed to take the other one.
_POLICY_C_SHA384 = bytes.fromhex(
    "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165"
)

_BANKS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}  # Part 2, 6.3
_AKS: dict[Algorithm, str] = {
    "ecc": "ecc256:ecdsa-sha256:null",
    "rsa": "rsa2048:rsassa-sha256:null",
}
# noDA: a key without a password has nothing to guess, and must work while the TPM is locked out.
_KEY_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.SIGN_ENCRYPT
)
_AK_ATTRIBUTES = _KEY_ATTRIBUTES | TPMA_OBJECT.RESTRICTED


@dataclass(frozen=True, slots=True)
class Ak:
    """An attestation key in the TPM.

    `public` is its TPMT_PUBLIC, `name` its TPM Name; `ek` is the endorsement key that an enrolment
    uses, for a key that we made also its parent. `handle` is the library's, for this connection.
    """

    handle: int
    public: bytes
    name: bytes
    ek: EkKind


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote: TPMS_ATTEST, TPMT_SIGNATURE, and the PCR values that give the quoted digest."""

    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]


class Tpm:
    """One TPM. All methods may be called from any thread; one command is under way at a time.

    What the TPM refuses is raised as a `TpmError` that names the command and the response code.
    """

    def __init__(self, tcti: Tcti) -> None:
        """Connect to a TPM that its firmware has started.

        Raises:
            UnreachableError: there is none, or it does not answer.
        """
        # ESAPI contexts are not thread-safe, and a TPM holds few sessions and objects at a time.
        self._lock = threading.RLock()
        self._where = tcti if isinstance(tcti, str) else "a TPM in software"
        self._tcti = _FunctionTcti(tcti) if callable(tcti) else tcti
        self._eks: dict[EkKind, bytes] = {}
        self._aks: list[int] = []
        self._closed = False
        try:
            self._esapi = ESAPI(self._tcti)
        except (TSS2_Exception, RuntimeError) as error:
            raise self._unreachable(str(error)) from error
        try:
            self._banks = self._active_banks()
        except BaseException:
            self._esapi.close()
            raise

    def __enter__(self) -> "Tpm":
        """Return the TPM."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Remove the keys that we made from the TPM, and disconnect; safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._aks:
                self._flush(self._aks.pop())
            self._esapi.close()

    # -- endorsement keys ------------------------------------------------------------------------

    def ek_certificate(self, kind: EkKind) -> bytes | None:
        """Return the DER certificate of an EK, or None where the TPM has none.

        It comes from NV memory (TCG EK Credential Profile, 2.2.1.4), where padding may follow it.
        """
        index = _EKS[kind][0]
        with self._lock:
            return trim_der(self.read_nv(index)) if self._exists(index) else None

    def ek_public(self, kind: EkKind) -> bytes:
        """Return the TPMT_PUBLIC of an EK, made from its template."""
        with self._lock:
            if kind not in self._eks:
                with self._ek(kind):
                    pass
            return self._eks[kind]

    def _choose_ek(self, algorithm: Algorithm) -> EkKind:
        """Return an EK that has a certificate, where there is a choice of the AK's own type."""
        kinds: tuple[EkKind, ...] = get_args(EkKind)
        for kind in sorted(kinds, key=lambda kind: not kind.startswith(algorithm)):
            if self._exists(_EKS[kind][0]):
                return kind
        raise NoEkCertificateError(
            "the TPM has no endorsement certificate",
            expected=", ".join(f"NV index {_EKS[kind][0]:#010x} ({kind})" for kind in kinds),
            advice="name the EK to use, and have its public key vouched for in another way; a "
            "software TPM gets its certificate when it is manufactured",
        )

    @contextmanager
    def _ek(self, kind: EkKind) -> Iterator[int]:
        """Make an EK from its template, and flush it in the end."""
        certificate_index, name, _ = _EKS[kind]

        def read(index: int) -> bytes:
            if self._exists(index):
                return self.read_nv(index)
            if index == certificate_index:
                return b""  # the key is the same without a certificate
            raise NoSuchIndex(index)

        _, template = create_ek_template(name, read)
        with self._command("TPM2_CreatePrimary"):
            handle, public, *_ = self._esapi.create_primary(
                TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
            )
        try:
            self._eks[kind] = public.publicArea.marshal()
            yield handle
        finally:
            self._flush(handle)

    @contextmanager
    def _ek_policy(self, kind: EkKind) -> Iterator[int]:
        """Open a session that satisfies an EK's policy; it serves for one command."""
        algorithm = _EKS[kind][2]
        with self._command("TPM2_StartAuthSession"):
            session = self._esapi.start_auth_session(
                ESYS_TR.NONE,
                ESYS_TR.NONE,
                TPM2_SE.POLICY,
                TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
                algorithm,
            )
        try:
            # So that it is there to be flushed, whether the command succeeds or not.
            self._esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
            with self._command("TPM2_PolicySecret"):
                # In full: the library's version 2, which Debian has, knows no defaults here.
                self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            if algorithm == TPM2_ALG.SHA384:
                with self._command("TPM2_PolicyOR"):
                    taken = self._esapi.policy_get_digest(session)
                    branches = [taken, TPM2B_DIGEST(_POLICY_C_SHA384)]
                    self._esapi.policy_or(session, TPML_DIGEST(branches))
            yield session
        finally:
            self._flush(session)

    # -- attestation keys ------------------------------------------------------------------------

    def create_ak(self, algorithm: Algorithm = "ecc", *, ek: EkKind | None = None) -> Ak:
        """Make an attestation key: ECC P-256 with ECDSA, or RSA-2048 with RSASSA; SHA-256.

        It is a child of the EK, so that it does not outlive a TPM2_Clear, and stays loaded until
        `close` or the end of the boot. `ek` is chosen among those with a certificate if not given.

        Raises:
            NoEkCertificateError: no EK was named and none has a certificate.
        """
        with self._lock:
            made = self._create(ek or self._choose_ek(algorithm), algorithm, _AK_ATTRIBUTES)
            self._aks.append(made.handle)
            return made

    def _create(self, ek: EkKind, algorithm: Algorithm, attributes: Any) -> Ak:
        """Make a key below an EK, and load it."""
        with self._ek(ek) as parent:
            with self._ek_policy(ek) as session, self._command("TPM2_Create"):
                private, public, *_ = self._esapi.create(
                    parent,
                    TPM2B_SENSITIVE_CREATE(),
                    TPM2B_PUBLIC.parse(_AKS[algorithm], objectAttributes=attributes),
                    session1=session,
                )
            with self._ek_policy(ek) as session, self._command("TPM2_Load"):
                handle = self._esapi.load(parent, private, public, session1=session)
        encoded: bytes = public.publicArea.marshal()
        return Ak(handle, encoded, tpm2.parse_public(encoded).name, ek)

    @contextmanager
    def signing_key(self, ak: Ak) -> Iterator[Ak]:
        """Make an ECC P-256 key that signs anything and cannot leave the TPM; forget it after.

        It is a child of the EK, as the AK is. `certify` says whose TPM it is in; `sign` signs.
        """
        with self._lock:
            key = self._create(ak.ek, "ecc", _KEY_ATTRIBUTES)
            try:
                yield key
            finally:
                self._flush(key.handle)

    def certify(self, ak: Ak, key: Ak, extra_data: bytes) -> tuple[bytes, bytes]:
        """Have the AK attest that `key` is in this TPM (TPM2_Certify).

        Returns:
            The TPMS_ATTEST and its TPMT_SIGNATURE.

        Raises:
            KeyLostError: another key than the one that was meant attested, or was attested.
        """
        with self._lock, self._command("TPM2_Certify"):
            attest, signature = self._esapi.certify(
                ESYS_TR(key.handle),
                ESYS_TR(ak.handle),
                extra_data,
                TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
            )
        message, signed = bytes(attest), bytes(signature.marshal())
        said = tpm2.parse_certified(message)
        mine = tpm2.parse_signature(signed).verify(tpm2.parse_public(ak.public), message)
        if not mine or said.name != key.name or said.extra_data != extra_data:
            raise KeyLostError("another key signed", advice=KeyLostError.ADVICE)
        return message, signed

    def open_ak(self, handle: int, *, ek: EkKind = "rsa2048") -> Ak:
        """Use an attestation key that is kept at a persistent handle (0x81000003 on Azure).

        Raises:
            UnfitKeyError: there is none, or it can sign what its TPM did not make.
        """
        with self._lock:
            if handle >> 24 != 0x81 or not self._exists(handle):
                raise UnfitKeyError(
                    "there is no key at this persistent handle", got=f"{handle:#010x}"
                )
            with self._command("TPM2_ReadPublic"):
                key = self._esapi.tr_from_tpmpublic(handle)
                public, *_ = self._esapi.read_public(key)
            encoded: bytes = public.publicArea.marshal()
            parsed = tpm2.parse_public(encoded)
            parsed.require_ak()
            if parsed.scheme is None or parsed.scheme[1] != tpm2.ALG_SHA256:
                raise UnfitKeyError("the key does not sign with SHA-256 alone", got=parsed.scheme)
            return Ak(key, encoded, parsed.name, ek)

    def activate(self, ak: Ak, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the secret of a challenge (TPM2_ActivateCredential; Part 1, 24).

        Args:
            ak: the key that the challenge names.
            credential_blob: TPM2B_ID_OBJECT.
            encrypted_secret: TPM2B_ENCRYPTED_SECRET.

        Raises:
            CredentialError: the challenge is for another AK or another TPM.
        """
        blob = _unmarshal(TPM2B_ID_OBJECT, credential_blob)
        secret = _unmarshal(TPM2B_ENCRYPTED_SECRET, encrypted_secret)
        with (
            self._lock,
            self._ek(ak.ek) as key,
            self._ek_policy(ak.ek) as session,
            self._command("TPM2_ActivateCredential"),
        ):
            return bytes(
                self._esapi.activate_credential(
                    ESYS_TR(ak.handle),
                    key,
                    blob,
                    secret,
                    session1=ESYS_TR.PASSWORD,
                    session2=session,
                )
            )

    def sign(self, ak: Ak, data: bytes) -> bytes:
        """Sign data of any length; return the TPMT_SIGNATURE.

        A restricted key signs only digests that the TPM made itself: the TPM hashes the data and
        gives a ticket for the digest, unless it begins with TPM_GENERATED_VALUE (Part 1, 25.2.3).

        Raises:
            GeneratedDataError: it does.
            KeyLostError: the key is not in the TPM any more.
        """
        with self._lock:
            digest, ticket = self._hash(data)
            with self._command("TPM2_Sign"):
                signature = self._esapi.sign(
                    ESYS_TR(ak.handle), digest, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), ticket
                )
        encoded = bytes(signature.marshal())
        # A handle outlives the key that it stood for; what stands there now may sign as well.
        if not tpm2.parse_signature(encoded).verify(tpm2.parse_public(ak.public), data):
            raise KeyLostError("another key signed", advice=KeyLostError.ADVICE)
        return encoded

    def _hash(self, data: bytes) -> tuple[Any, Any]:
        """Have the TPM hash data with SHA-256; return the digest and its ticket."""
        if len(data) <= _BUFFER:
            with self._command("TPM2_Hash"):
                digest, ticket = self._esapi.hash(data, TPM2_ALG.SHA256, ESYS_TR.ENDORSEMENT)
                return digest, ticket
        with self._command("TPM2_HashSequenceStart"):
            sequence = self._esapi.hash_sequence_start(None, TPM2_ALG.SHA256)
        try:
            *blocks, last = [data[at : at + _BUFFER] for at in range(0, len(data), _BUFFER)]
            with self._command("TPM2_SequenceUpdate"):
                for block in blocks:
                    self._esapi.sequence_update(sequence, block)
            with self._command("TPM2_SequenceComplete"):
                digest, ticket = self._esapi.sequence_complete(sequence, last, ESYS_TR.ENDORSEMENT)
                return digest, ticket
        except BaseException:
            self._flush(sequence)  # a sequence that was completed is gone by itself
            raise

    # -- PCRs ------------------------------------------------------------------------------------

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR of the SHA-256 bank: its value becomes SHA-256(value || digest).

        Raises:
            PcrError: the PCR can be reset (16 to 23), or the digest has not 32 bytes.
            BankInactiveError: the TPM would ignore the digest.
        """
        # The TPM takes a short digest, and one for a bank that is not active, without a word.
        if not 0 <= pcr <= LAST_PCR:
            raise PcrError("this PCR is never extended", got=pcr, expected=f"0 to {LAST_PCR}")
        if len(digest) != 32:
            raise PcrError("the digest is not one of SHA-256", got=f"{len(digest)} bytes")
        self._require_bank([pcr])
        values = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))
        with self._lock, self._command("TPM2_PCR_Extend"):
            self._esapi.pcr_extend(ESYS_TR(pcr), TPML_DIGEST_VALUES([values]))

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """Return the values of PCRs in the SHA-256 bank, all as they were at one time.

        They are not authenticated; `quote` is.

        Raises:
            BankInactiveError: the SHA-256 bank does not have them.
            BusyError: others keep extending PCRs.
        """
        wanted = self._require_bank(pcrs)
        with self._lock:
            for _ in range(_ATTEMPTS):
                values: dict[int, bytes] = {}
                counters = set()
                for start in range(0, len(wanted), _PCRS_A_READ):
                    batch = wanted[start : start + _PCRS_A_READ]
                    with self._command("TPM2_PCR_Read"):
                        counter, _, digests = self._esapi.pcr_read(_selection(batch))
                    counters.add(int(counter))
                    values |= dict(zip(batch, (bytes(digest) for digest in digests), strict=True))
                # The TPM counts changes: equal counters mean that the batches are of one time.
                if len(counters) <= 1:
                    return values
        raise BusyError("others keep extending PCRs", advice=BusyError.ADVICE)

    def quote(self, ak: Ak, extra_data: bytes, pcrs: Sequence[int]) -> Quote:
        """Quote PCRs of the SHA-256 bank, with at most 64 bytes of `extra_data`.

        The quote is checked as a verifier would: signature, extra data, selection, and that the
        values which come with it give the quoted digest.

        Raises:
            QuoteError: it is not what was asked for.
            BankInactiveError: the SHA-256 bank does not have these PCRs.
            BusyError: others keep extending PCRs.
        """
        if len(extra_data) > MAX_EXTRA_DATA:
            raise QuoteError(
                "the extra data is too long", got=len(extra_data), expected=f"<= {MAX_EXTRA_DATA}"
            )
        wanted = self._require_bank(pcrs)
        if not wanted:
            raise QuoteError("a quote of no PCR says nothing")
        public = tpm2.parse_public(ak.public)
        with self._lock:
            for _ in range(_ATTEMPTS):
                with self._command("TPM2_Quote"):
                    attest, signature = self._esapi.quote(
                        ESYS_TR(ak.handle), _selection(wanted), extra_data
                    )
                message, signed = bytes(attest), bytes(signature.marshal())
                said = tpm2.check_quote(message, signed, public)
                if said.extra_data != extra_data or said.require_sha256_selection() != set(wanted):
                    raise QuoteError(
                        "the quote is not the one that was asked for",
                        got=f"{said.extra_data.hex()} over {sorted(said.selection)}",
                        expected=f"{extra_data.hex()} over {wanted}",
                    )
                values = self.read_pcrs(wanted)
                if tpm2.pcr_digest(values, wanted) == said.pcr_digest:
                    return Quote(message, signed, values)
        raise BusyError("others keep extending PCRs", advice=BusyError.ADVICE)

    def clock_info(self) -> tpm2.ClockInfo:
        """Return the TPM's clock, and how often it was reset and restarted (TPM2_ReadClock)."""
        with self._lock, self._command("TPM2_ReadClock"):
            info = self._esapi.read_clock().clockInfo
        return tpm2.ClockInfo(
            int(info.clock), int(info.resetCount), int(info.restartCount), bool(info.safe)
        )

    def _require_bank(self, pcrs: Iterable[int]) -> list[int]:
        """Return the PCRs in ascending order, all of them in the active SHA-256 bank."""
        wanted = sorted(set(pcrs))
        if missing := [pcr for pcr in wanted if pcr not in self._banks.get("sha256", ())]:
            raise BankInactiveError(
                f"the TPM has no active SHA-256 bank for PCR {missing[0]}",
                got=", ".join(name for name, held in self._banks.items() if held) or "no bank",
                expected="sha256",
                advice="enable the SHA-256 bank in the firmware's settings, or with "
                "tpm2_pcrallocate sha256:all, and restart the machine",
            )
        return wanted

    def _active_banks(self) -> dict[str, frozenset[int]]:
        """Return the PCRs of each bank; they change only with a restart (TPM2_PCR_Allocate)."""
        with self._command("TPM2_GetCapability"):
            _, capability = self._esapi.get_capability(TPM2_CAP.PCRS, 0, 1)
        banks = {}
        for bank in capability.data.assignedPCR:
            bits = int.from_bytes(bytes(bank.pcrSelect)[: bank.sizeofSelect], "little")
            name = _BANKS.get(int(bank.hash), f"{int(bank.hash):#06x}")
            banks[name] = frozenset(pcr for pcr in range(24) if bits >> pcr & 1)
        return banks

    # -- NV memory -------------------------------------------------------------------------------

    def has_nv(self, index: int) -> bool:
        """Tell whether an NV index exists."""
        with self._lock:
            return self._exists(index)

    def read_nv(self, index: int, *, max_bytes: int = MAX_NV_BYTES) -> bytes:
        """Return the content of an NV index that anybody, or the TPM's owner, may read.

        Raises:
            NvError: it does not exist, is larger than `max_bytes`, or may not be read so.
        """
        where = f"NV index {index:#010x}"
        with self._lock:
            if index >> 24 != 0x01 or not self._exists(index):
                raise NvError(f"{where} does not exist", advice="this TPM does not hold it")
            with self._command("TPM2_NV_ReadPublic"):
                handle = self._esapi.tr_from_tpmpublic(index)
            try:
                with self._command("TPM2_NV_ReadPublic"):
                    public = self._esapi.nv_read_public(handle)[0].nvPublic
                size = int(public.dataSize)
                if size > max_bytes:
                    raise NvError(f"{where} is too large", got=size, expected=f"<= {max_bytes}")
                # The owner first: an index that anybody may read may have a password even so, as
                # those of Azure's firmware do, which it tells nobody.
                if public.attributes & TPMA_NV.OWNERREAD:
                    try:
                        return self._read_nv(handle, size, ESYS_TR.OWNER)
                    except AuthorizationError:
                        if not public.attributes & TPMA_NV.AUTHREAD:
                            raise
                return self._read_nv(handle, size, handle)
            finally:
                self._esapi.tr_close(handle)

    def _read_nv(self, handle: ESYS_TR, size: int, reader: ESYS_TR) -> bytes:
        step = min(self._property(TPM2_PT_NV.BUFFER_MAX), _BUFFER)
        data = b""
        while len(data) < size:
            with self._command("TPM2_NV_Read"):
                count = min(step, size - len(data))
                data += bytes(self._esapi.nv_read(handle, count, len(data), reader))
        return data

    def _exists(self, handle: int) -> bool:
        with self._command("TPM2_GetCapability"):
            _, capability = self._esapi.get_capability(TPM2_CAP.HANDLES, handle, 1)
        return handle in [int(found) for found in capability.data.handles]

    def _property(self, name: int) -> int:
        with self._command("TPM2_GetCapability"):
            _, capability = self._esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, name, 1)
        return int(capability.data.tpmProperties[0].value)

    # -- errors ----------------------------------------------------------------------------------

    def _flush(self, handle: int) -> None:
        # What went wrong before is what a caller must hear of; a lost TPM has nothing to flush.
        with suppress(TSS2_Exception):
            self._esapi.flush_context(ESYS_TR(handle))

    @contextmanager
    def _command(self, name: str) -> Iterator[None]:
        """Turn an error of the library into one of ours that names the command."""
        try:
            yield
        except TSS2_Exception as error:
            raise self._refusal(name, int(error.rc), str(error)) from error

    def _refusal(self, command: str, rc: int, text: str) -> TpmError:
        if rc >> 16 not in _TPM_LAYERS:
            return self._unreachable(f"{command}: {text}")
        name, place = _decode(rc & 0xFFFF)
        kind = CLASSES.get(name, TpmError)
        return kind(
            f"the TPM refused {command} with TPM_RC_{name}",
            got=f"{rc & 0xFFFF:#05x}{place}: {text}",
            advice=kind.ADVICE,
        )

    def _unreachable(self, text: str) -> UnreachableError:
        advice = UnreachableError.ADVICE
        failure = getattr(self._tcti, "failure", None)
        if isinstance(failure, Error):
            text, advice = str(failure), failure.advice or advice
        if self._where.startswith("device:"):
            device = Path(self._where.removeprefix("device:"))
            if not device.exists():
                text = f"{device} does not exist"
                advice = "enable the TPM in the firmware's settings (or add a vTPM to the VM)"
            elif not os.access(device, os.R_OK | os.W_OK):
                text = f"{device} may not be opened by this user"
                advice = "run as root, or join the group that owns the device (often tss)"
        return UnreachableError(f"{self._where} does not answer", got=text, advice=advice)


class _FunctionTcti(PyTCTI):  # type: ignore[misc]
    """A TCTI over a function that gives the TPM a command and returns its response."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._exchange = exchange
        self._response = b""
        self.failure: Exception | None = None

    def do_transmit(self, command: bytes) -> None:
        try:
            self._response = self._exchange(command)
        except Exception as error:
            self.failure = error  # the C code between here and the caller drops it
            raise

    def do_receive(self, timeout: int) -> bytes:
        del timeout
        return self._response


_TPM_LAYERS = (0, 11, 12)  # the TPM itself, and a resource manager before it


def _decode(rc: int) -> tuple[str, str]:
    """Return the name of a TPM_RC, and what it is about (Part 2, 6.6)."""
    place = ""
    if rc & 0x80:  # format 1: the code is about a parameter, a session or a handle
        number = rc >> 8 & 0xF
        if rc & 0x40:
            place = f", parameter {number}"
        elif number:
            place = f", session {number - 8}" if number >= 8 else f", handle {number}"
        rc = 0x80 | rc & 0x3F
    return _RC_NAMES.get(rc, f"{rc:#05x}"), place


_RC_NAMES = {
    int(value): name
    for name, value in vars(TPM2_RC).items()
    # Not the bases and masks that the codes are made of.
    if isinstance(value, int)
    and name not in ("VER1", "FMT1", "WARN", "MAX_FM0", "NOT_USED", "N_MASK")
    and len(name) > 1
    and not name.removeprefix("RC").isdigit()
}


def _selection(pcrs: Iterable[int]) -> Any:
    return TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(pcr) for pcr in pcrs))


def _unmarshal(kind: Any, data: bytes) -> Any:
    """Read a TPM2B, whole."""
    if len(data) < 2 or int.from_bytes(data[:2], "big") != len(data) - 2:
        raise CredentialError("the challenge is not whole", advice=CredentialError.ADVICE)
    try:
        value, used = kind.unmarshal(data)
    except TSS2_Exception as error:
        raise CredentialError("the challenge cannot be read", got=error) from error
    del used
    return value


def trim_der(data: bytes) -> bytes:
    """Cut what follows a DER sequence of at least 256 bytes (X.690, 8.1.3), as NV memory pads it.

    Raises:
        NvError: it does not begin with one.
    """
    if data[:2] != b"\x30\x82":
        raise NvError("a certificate in NV memory is not in DER", got=data[:8])
    return data[: 4 + int.from_bytes(data[2:4], "big")]
