"""TPM 2.0 structures, read strictly: TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC.

Clauses are those of the TCG TPM 2.0 Library, Part 2 (Structures), revision 1.59, unless another
part is named. All integers are big-endian. Only what attestation needs is accepted: other
algorithms, other types and trailing bytes are errors, never ignored. Every byte is an attacker's.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aicert.errors import Error
from aicert.words import count

TPM_GENERATED_VALUE = 0xFF544347  # 6.2
TPM_ST_ATTEST_CERTIFY = 0x8017  # 6.9
TPM_ST_ATTEST_QUOTE = 0x8018

# The hierarchies whose seeds TPM2_Clear leaves as they are (7.4; Part 3, 24.6).
TPM_RH_ENDORSEMENT = 0x4000000B
TPM_RH_PLATFORM = 0x4000000C

# TPM_ALG_ID, 6.3
ALG_RSA = 0x0001
ALG_AES = 0x0006
ALG_SHA256 = 0x000B
ALG_SHA384 = 0x000C
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
ALG_CFB = 0x0043

# The order of P-256's group (FIPS 186-4, D.1.2.3): both halves of a signature lie below it.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

# TPM_ECC_CURVE, 6.4
_CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
_HASHES = {ALG_SHA256: hashlib.sha256, ALG_SHA384: hashlib.sha384}
_HASH_NAMES = {0x0004: "SHA-1", ALG_SHA256: "SHA-256", ALG_SHA384: "SHA-384", 0x000D: "SHA-512"}

MAX_PCRS = 24
RSA_BITS = (2048, 3072, 4096)
MAX_RSA_BITS = RSA_BITS[-1]


class StructureError(Error):
    """The bytes are not the TPM structure that they should be."""

    code = "tpm.structure"
    remedy = "do not use this certificate: no TPM made these bytes"


class TrailingBytesError(StructureError):
    """Bytes follow the structure."""

    code = "tpm.trailing-bytes"


class AlgorithmError(StructureError):
    """The structure names an algorithm that is not accepted."""

    code = "tpm.algorithm"
    remedy = (
        "do not use this certificate: with this algorithm it could be forged, or nobody here "
        "knows it"
    )


class QuoteMagicError(Error):
    """The structure was not made inside a TPM."""

    code = "quote.magic"
    remedy = "do not use this certificate: anybody can have made this quote"


class QuoteTypeError(Error):
    """The structure is an attestation, but not a quote."""

    code = "quote.type"
    remedy = "do not use this certificate: what was signed is no quote"


class QuoteSignatureError(Error):
    """The quote's signature is not the key's."""

    code = "quote.signature"
    remedy = "do not use this evidence: it was changed, or it is another TPM's"


class SelectionError(Error):
    """The quote's PCR selection cannot be accepted."""

    code = "quote.selection"
    remedy = "do not use this certificate: its quote is over other registers than it must be"


class PcrDigestError(Error):
    """The PCR values are not those that were quoted."""

    code = "quote.pcr-digest"
    remedy = "do not use this evidence: its PCR values were changed"


class AkError(Error):
    """The attestation key cannot be accepted."""

    code = "ak.key"
    remedy = "do not use this certificate: such a key can sign what no TPM made"


class KeySizeError(AkError):
    """The key is too short, or its curve or exponent is not accepted."""

    code = "ak.key-size"


class AttributesError(AkError):
    """The key's attributes let it sign what its TPM did not make."""

    code = "ak.attributes"


class _Bytes:
    """A cursor over untrusted bytes."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise StructureError(
                f"{self.name} ends too soon", got=len(self._data), expected=f">= {end} bytes"
            )
        chunk = self._data[self._position : end]
        self._position = end
        return chunk

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self, limit: int) -> bytes:
        """A TPM2B: a 16-bit size and as many bytes."""
        size = self.u16()
        if size > limit:
            raise StructureError(f"{self.name} holds a field that is too large", got=size)
        return self.take(size)

    def parameter(self, limit: int) -> int:
        """A TPM2B_ECC_PARAMETER (11.2.5.1): as wide as the curve, or without leading zeros.

        Some TPMs pad, some strip; any other width would let one number be written in many ways.
        """
        data = self.sized(limit)
        if not data or (len(data) < limit and not data[0]):
            raise StructureError(f"{self.name} holds a number that is not canonical", got=data)
        return int.from_bytes(data, "big")

    def done(self) -> None:
        if left := len(self._data) - self._position:
            raise TrailingBytesError(
                f"{self.name} is followed by {count(left, 'byte')} more",
                got=f"{len(self._data)} bytes",
                expected=f"{self._position} bytes",
            )


# -- TPMT_PUBLIC (12.2.4) ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attributes:
    """TPMA_OBJECT (8.3): what a key may be used for."""

    value: int

    FIXED_TPM: ClassVar[int] = 1 << 1
    FIXED_PARENT: ClassVar[int] = 1 << 4
    SENSITIVE_DATA_ORIGIN: ClassVar[int] = 1 << 5
    RESTRICTED: ClassVar[int] = 1 << 16
    DECRYPT: ClassVar[int] = 1 << 17
    SIGN: ClassVar[int] = 1 << 18

    # 8.3.2, and bits 8 and 9 of revision 1.83
    _NAMES: ClassVar[dict[int, str]] = {
        1 << 1: "fixedTPM",
        1 << 2: "stClear",
        1 << 4: "fixedParent",
        1 << 5: "sensitiveDataOrigin",
        1 << 6: "userWithAuth",
        1 << 7: "adminWithPolicy",
        1 << 8: "firmwareLimited",
        1 << 9: "svnLimited",
        1 << 10: "noDA",
        1 << 11: "encryptedDuplication",
        1 << 16: "restricted",
        1 << 17: "decrypt",
        1 << 18: "sign",
        1 << 19: "x509sign",
    }

    def __contains__(self, bit: int) -> bool:
        """Tell whether an attribute is set."""
        return bool(self.value & bit)

    def __str__(self) -> str:
        """Return the names of the attributes that are set."""
        names = [self._NAMES.get(1 << n, f"bit {n}") for n in range(32) if self.value >> n & 1]
        return ", ".join(names) or "none"


PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Public:
    """A parsed TPMT_PUBLIC of an RSA or ECC key.

    `name` is the TPM Name (Part 1, 16): nameAlg, two bytes, and the digest of the structure.
    `scheme` is the key's own signing scheme and hash, or None where the key leaves it open.
    `symmetric_bits` is the AES key size of a storage key (an EK), or None. The point of an ECC
    `key` was checked to lie on its curve.
    """

    encoded: bytes
    name: bytes
    name_algorithm: int
    attributes: Attributes
    policy: bytes
    scheme: tuple[int, int] | None
    symmetric_bits: int | None
    key: PublicKey

    @property
    def pem(self) -> bytes:
        """The public key as other tools read it: SubjectPublicKeyInfo in PEM."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def outlives_clear(self, qualified_signer: bytes) -> bool:
        """Tell from the Qualified Name in its quotes whether this key comes back after TPM2_Clear.

        Primary keys of the endorsement and platform hierarchies do, as those are with which
        Azure's and Google's virtual TPMs attest: they are made anew from a seed that stays. Their
        Qualified Name is nameAlg and the digest of the hierarchy's handle and their Name (Part 1,
        "Qualified Name"). A key below another one does not: its parent's proof is changed.
        """
        algorithm = _HASHES[self.name_algorithm]
        return any(
            qualified_signer
            == self.name[:2] + algorithm(struct.pack(">I", at) + self.name).digest()
            for at in (TPM_RH_ENDORSEMENT, TPM_RH_PLATFORM)
        )

    def require_ak(self) -> None:
        """Check that this is an attestation key.

        A restricted signing key signs only digests that its TPM made (Part 1, 25.2.3); fixedTPM
        and fixedParent keep it there; sensitiveDataOrigin says that the TPM made it.

        Raises:
            AttributesError: it is not.
            KeySizeError: it is on a curve that attestation keys may not have.
            AkError: its Name is not a SHA-256, or it has a symmetric algorithm, which only storage
                keys have.
        """
        a = Attributes
        needed = a.FIXED_TPM | a.FIXED_PARENT | a.SENSITIVE_DATA_ORIGIN | a.RESTRICTED | a.SIGN
        if self.attributes.value & needed != needed or a.DECRYPT in self.attributes:
            raise AttributesError(
                "the key is not an attestation key",
                got=self.attributes,
                expected=f"{Attributes(needed)}; not decrypt",
                advice="do not use this certificate: such a key can sign forged quotes",
            )
        if isinstance(self.key, ec.EllipticCurvePublicKey) and self.key.key_size != 256:
            raise KeySizeError(
                "the attestation key's curve is not accepted",
                got=self.key.curve.name,
                expected="secp256r1 (P-256)",
            )
        if self.name_algorithm != ALG_SHA256:
            raise AkError(
                "the attestation key is not named with SHA-256",
                got=_HASH_NAMES[self.name_algorithm],
                expected="SHA-256",
            )
        # No TPM makes a signing key with one (Part 2, 12.2.3.5 and 12.2.3.6): it was made up.
        if self.symmetric_bits is not None:
            raise AkError(
                "the attestation key has a symmetric algorithm, as only storage keys have",
                got=f"AES-{self.symmetric_bits}",
                expected="none",
            )

    def require_signing_key(self) -> None:
        """Check that this is an ECC P-256 key that its TPM made, keeps, and signs anything with.

        Raises:
            AttributesError: it is not, or it is an attestation key.
            KeySizeError: it is on another curve, or no ECC key.
        """
        a = Attributes
        needed = a.FIXED_TPM | a.FIXED_PARENT | a.SENSITIVE_DATA_ORIGIN | a.SIGN
        wrong = a.RESTRICTED in self.attributes or a.DECRYPT in self.attributes
        if self.attributes.value & needed != needed or wrong:
            raise AttributesError(
                "the key is not a signing key that cannot leave its TPM",
                got=self.attributes,
                expected=f"{Attributes(needed)}; neither restricted nor decrypt",
            )
        if not isinstance(self.key, ec.EllipticCurvePublicKey) or self.key.key_size != 256:
            raise KeySizeError("the signing key is not an ECC key on P-256")


def parse_public(data: bytes) -> Public:
    """Parse a TPMT_PUBLIC.

    Raises:
        StructureError: it is not one, or of a type that is not RSA or ECC.
        AlgorithmError: it names an algorithm that is not accepted; SHA-1 never is.
        KeySizeError: RSA of another size than 2,048, 3,072 or 4,096 bits or with another exponent
            than 65,537; another curve than P-256 or P-384, or a point off it.
    """
    cursor = _Bytes(data, "the public area")
    kind = cursor.u16()
    name_algorithm = cursor.u16()
    if name_algorithm not in _HASHES:
        raise _refused("nameAlg", name_algorithm, "SHA-256 or SHA-384")
    attributes = Attributes(cursor.u32())
    if reserved := attributes.value & ~sum(Attributes._NAMES):
        raise StructureError("reserved attributes are set", got=Attributes(reserved))
    policy = cursor.sized(64)
    symmetric_bits = _read_symmetric(cursor)
    scheme = _read_scheme(cursor, kind)
    key: PublicKey
    if kind == ALG_RSA:
        key = _read_rsa(cursor)
    elif kind == ALG_ECC:
        key = _read_ecc(cursor)
    else:
        raise _refused("type", kind, "RSA or ECC")
    cursor.done()
    name = struct.pack(">H", name_algorithm) + _HASHES[name_algorithm](data).digest()
    return Public(data, name, name_algorithm, attributes, policy, scheme, symmetric_bits, key)


def unwrap_public(data: bytes) -> bytes:
    """Return the TPMT_PUBLIC inside a TPM2B_PUBLIC (12.2.5)."""
    cursor = _Bytes(data, "the sized public area")
    inner = cursor.sized(4096)
    cursor.done()
    return inner


def _read_symmetric(cursor: _Bytes) -> int | None:
    """TPMT_SYM_DEF_OBJECT (11.1.7): AES in CFB mode for a storage key, else null."""
    algorithm = cursor.u16()
    if algorithm == ALG_NULL:
        return None
    if algorithm != ALG_AES:
        raise _refused("symmetric algorithm", algorithm, "AES")
    bits, mode = cursor.u16(), cursor.u16()
    if bits not in (128, 192, 256) or mode != ALG_CFB:
        raise AlgorithmError("the symmetric parameters are not accepted", got=f"{bits}, {mode:#x}")
    return bits


def _read_scheme(cursor: _Bytes, kind: int) -> tuple[int, int] | None:
    """TPMT_ASYM_SCHEME (11.2.3.4) of a signing key, or null."""
    scheme = cursor.u16()
    if scheme == ALG_NULL:
        return None
    allowed = (ALG_RSASSA, ALG_RSAPSS) if kind == ALG_RSA else (ALG_ECDSA,)
    if scheme not in allowed:
        raise _refused("scheme", scheme, "RSASSA, RSAPSS or ECDSA")
    algorithm = cursor.u16()
    if algorithm not in _HASHES:
        raise _refused("the scheme's hash", algorithm, "SHA-256 or SHA-384")
    return scheme, algorithm


def _read_rsa(cursor: _Bytes) -> rsa.RSAPublicKey:
    """TPMS_RSA_PARMS (12.2.3.5), from keyBits on, and the modulus."""
    bits, exponent = cursor.u16(), cursor.u32() or 65537  # zero stands for 2^16 + 1
    octets = cursor.sized(MAX_RSA_BITS // 8)
    modulus = int.from_bytes(octets, "big")
    # The modulus fills its field (11.2.4.5): with leading zeros one key would have many names.
    if bits not in RSA_BITS or len(octets) * 8 != bits or modulus.bit_length() != bits:
        raise KeySizeError(
            "the RSA key's size is not accepted",
            got=f"{bits} bits stated, {modulus.bit_length()} in {len(octets)} bytes of modulus",
            expected=f"{', '.join(map(str, RSA_BITS))} bits",
        )
    if exponent != 65537:
        raise KeySizeError("the RSA key's exponent is not accepted", got=exponent, expected=65537)
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise KeySizeError("the RSA key is not valid", got=error) from error


def _read_ecc(cursor: _Bytes) -> ec.EllipticCurvePublicKey:
    """TPMS_ECC_PARMS (12.2.3.6), from curveID on, and the point."""
    curve = _CURVES.get(identifier := cursor.u16())
    if curve is None:
        raise KeySizeError(
            "the ECC key's curve is not accepted",
            got=f"{identifier:#06x}",
            expected="P-256 (0x0003) or P-384 (0x0004)",
        )
    if (kdf := cursor.u16()) != ALG_NULL:
        raise _refused("kdf", kdf, "none")
    size = (curve.key_size + 7) // 8
    numbers = ec.EllipticCurvePublicNumbers(cursor.parameter(size), cursor.parameter(size), curve)
    try:
        return numbers.public_key()  # refuses a point that is not on the curve
    except ValueError as error:
        raise KeySizeError(
            "the ECC key's point is not on its curve", expected=f"a point on {curve.name}"
        ) from error


# -- TPMT_SIGNATURE (11.3.4) ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed TPMT_SIGNATURE with SHA-256.

    `encoded` is the same signature as other tools have it: DER for ECDSA (RFC 3279, 2.2.3), the
    plain integer for RSA (RFC 8017, 8).
    """

    scheme: int
    encoded: bytes

    def verify(self, public: Public, data: bytes) -> bool:
        """Tell whether this is `public`'s signature over `data`."""
        key = public.key
        if public.scheme is not None and public.scheme != (self.scheme, ALG_SHA256):
            return False
        sha256 = hashes.SHA256()
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                if self.scheme != ALG_ECDSA:
                    return False
                key.verify(self.encoded, data, ec.ECDSA(sha256))
            elif self.scheme == ALG_RSASSA:
                key.verify(self.encoded, data, padding.PKCS1v15(), sha256)
            elif self.scheme == ALG_RSAPSS:
                pss = padding.PSS(padding.MGF1(sha256), padding.PSS.AUTO)
                key.verify(self.encoded, data, pss, sha256)
            else:
                return False
        except InvalidSignature:
            return False
        return True


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE: RSASSA, RSAPSS or ECDSA, with SHA-256.

    Raises:
        StructureError: it is not one.
        AlgorithmError: another scheme or hash; SHA-1 is never accepted.

    The two numbers of ECDSA lie in [1, n - 1] (FIPS 186-4, 6.4.2). Both s and n - s are accepted,
    as TPMs make either: a signature's bytes are not an identity.
    """
    cursor = _Bytes(data, "the signature")
    scheme, algorithm = cursor.u16(), cursor.u16()
    if scheme not in (ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA):
        raise _refused("the signature's scheme", scheme, "RSASSA, RSAPSS or ECDSA")
    if algorithm != ALG_SHA256:
        raise _refused("the signature's hash", algorithm, "SHA-256")
    if scheme == ALG_ECDSA:
        r, s = cursor.parameter(32), cursor.parameter(32)  # P-256: no AK is on another curve
        if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
            raise StructureError(
                "the signature's numbers are not in the range of its curve",
                got=f"{r:#x}, {s:#x}",
                expected=f"from 1 to {_P256_ORDER - 1:#x}",
            )
        encoded = encode_dss_signature(r, s)
    else:
        encoded = cursor.sized(MAX_RSA_BITS // 8)
    cursor.done()
    return Signature(scheme, encoded)


# -- TPMS_ATTEST of a quote (10.12.8) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClockInfo:
    """TPMS_CLOCK_INFO (10.11.1).

    `clock` counts milliseconds and may go back after an unorderly shutdown; `reset_count` counts
    TPM resets, `restart_count` restarts and resumes since the last reset.
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class Attest:
    """A parsed TPMS_ATTEST of a quote. `selection` is (hash algorithm, PCRs) for each bank."""

    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    selection: tuple[tuple[int, frozenset[int]], ...]
    pcr_digest: bytes

    def require_sha256_selection(self) -> frozenset[int]:
        """Return the PCRs of the one bank that was quoted, which must be SHA-256.

        Raises:
            SelectionError: another bank, several banks, or none.
        """
        if len(self.selection) != 1 or self.selection[0][0] != ALG_SHA256:
            banks = [_HASH_NAMES.get(alg, f"{alg:#06x}") for alg, _ in self.selection]
            raise SelectionError(
                "the quote is not over the SHA-256 bank alone", got=banks, expected=["SHA-256"]
            )
        return self.selection[0][1]

    def check_pcrs(self, values: Mapping[int, bytes]) -> None:
        """Check that `values` (32 bytes each) are those that were quoted.

        The digest is recomputed over exactly the selection: values beside it do not count, and a
        selection that was changed gives another digest or another signature.

        Raises:
            SelectionError: the values are not those of one SHA-256 selection.
            PcrDigestError: the values give another digest.
        """
        selected = self.require_sha256_selection()
        if values.keys() != selected or any(len(value) != 32 for value in values.values()):
            raise SelectionError(
                "the PCR values are not those of the selection",
                got=sorted(values),
                expected=sorted(selected),
            )
        digest = pcr_digest(values, selected)
        if digest != self.pcr_digest:
            raise PcrDigestError(
                "the PCR values are not those that were quoted",
                got=digest,
                expected=self.pcr_digest,
            )


def pcr_digest(values: Mapping[int, bytes], pcrs: Iterable[int]) -> bytes:
    """Return the digest of a quote with SHA-256: over the values in ascending order of PCR."""
    return hashlib.sha256(b"".join(values[pcr] for pcr in sorted(pcrs))).digest()


def parse_attest(data: bytes) -> Attest:
    """Parse a TPMS_ATTEST of a quote.

    Raises:
        QuoteMagicError: it does not begin with TPM_GENERATED_VALUE.
        QuoteTypeError: it is another attestation than a quote.
        SelectionError: a bank stands twice, is empty, or is encoded in another size than three.
        StructureError: it is not one otherwise.
    """
    cursor = _Bytes(data, "the quote")
    qualified_signer, extra_data, clock, firmware_version = _read_head(
        cursor, TPM_ST_ATTEST_QUOTE, "a quote"
    )
    selection = tuple(_read_selection(cursor) for _ in range(_count(cursor, 16)))
    if len({algorithm for algorithm, _ in selection}) != len(selection):
        raise SelectionError(
            "a PCR bank stands twice in the selection",
            got=[_HASH_NAMES.get(alg, f"{alg:#06x}") for alg, _ in selection],
            expected=["SHA-256"],
        )
    digest = cursor.sized(64)
    cursor.done()
    return Attest(qualified_signer, extra_data, clock, firmware_version, selection, digest)


@dataclass(frozen=True, slots=True)
class Certified:
    """A parsed TPMS_ATTEST of TPM2_Certify: the key with this Name is in the signer's TPM."""

    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    name: bytes


def parse_certified(data: bytes) -> Certified:
    """Parse a TPMS_ATTEST of TPM2_Certify (10.12.3, TPMS_CERTIFY_INFO).

    Raises:
        QuoteMagicError: it does not begin with TPM_GENERATED_VALUE.
        QuoteTypeError: it is another attestation.
        StructureError: it is not one otherwise.
    """
    cursor = _Bytes(data, "the certification")
    head = _read_head(cursor, TPM_ST_ATTEST_CERTIFY, "a certification of a key")
    name = cursor.sized(66)
    cursor.sized(66)  # the qualified name follows from the name and the key's place in the TPM
    cursor.done()
    return Certified(*head, name)


def _read_head(cursor: _Bytes, kind: int, name: str) -> tuple[bytes, bytes, ClockInfo, int]:
    """TPMS_ATTEST up to what is attested: signer, extra data, clock, firmware (10.12.8)."""
    if (magic := cursor.u32()) != TPM_GENERATED_VALUE:
        raise QuoteMagicError(
            f"{cursor.name} was not made by a TPM", got=f"{magic:#010x}", expected="0xff544347"
        )
    if (got := cursor.u16()) != kind:
        raise QuoteTypeError(
            f"this is another attestation than {name}", got=f"{got:#06x}", expected=f"{kind:#06x}"
        )
    qualified_signer = cursor.sized(66)
    extra_data = cursor.sized(66)
    clock, resets, restarts, safe = cursor.u64(), cursor.u32(), cursor.u32(), cursor.u8()
    if safe not in (0, 1):
        raise StructureError("TPMI_YES_NO is neither 0 nor 1", got=safe, expected="0 or 1")
    firmware_version = cursor.u64()
    return (
        qualified_signer,
        extra_data,
        ClockInfo(clock, resets, restarts, bool(safe)),
        (firmware_version),
    )


def _count(cursor: _Bytes, limit: int) -> int:
    count = cursor.u32()
    if not 1 <= count <= limit:
        raise SelectionError("the number of PCR banks", got=count, expected=f"1 to {limit}")
    return count


def _read_selection(cursor: _Bytes) -> tuple[int, frozenset[int]]:
    """TPMS_PCR_SELECTION (10.6.1); PC Client TPMs have 24 PCRs, three bytes."""
    algorithm, size = cursor.u16(), cursor.u8()
    if size != MAX_PCRS // 8:
        raise SelectionError("the size of a PCR selection", got=size, expected=MAX_PCRS // 8)
    bits = int.from_bytes(cursor.take(size), "little")
    if not bits:
        raise SelectionError(
            "a PCR selection is empty",
            got="no PCR",
            advice="do not use this certificate: the bank may be inactive, and nothing is quoted",
        )
    return algorithm, frozenset(pcr for pcr in range(MAX_PCRS) if bits >> pcr & 1)


def check_quote(message: bytes, signature: bytes, public: Public) -> Attest:
    """Parse a quote and check its signature; the caller checks what it says.

    Args:
        message: TPMS_ATTEST.
        signature: TPMT_SIGNATURE.
        public: the attestation key.

    Raises:
        AkError: the key's own scheme leaves its hash open, or is not with SHA-256.
        QuoteSignatureError: the signature is not the key's over this message.
        Error: (as `parse_attest`, `parse_signature`) a structure is not accepted.
    """
    attest = parse_attest(message)
    # A restricted key always has a scheme (Part 2, 12.2.3.5 and 12.2.3.6). One with another hash
    # could be honest: it is named here, rather than called a forger below.
    if public.scheme is None or public.scheme[1] != ALG_SHA256:
        raise AkError(
            "the attestation key's scheme is not accepted",
            got="none" if public.scheme is None else _HASH_NAMES[public.scheme[1]],
            expected="RSASSA, RSAPSS or ECDSA with SHA-256",
            advice="make the attestation key with SHA-256",
        )
    if not parse_signature(signature).verify(public, message):
        raise QuoteSignatureError(
            "the quote was not signed by the attestation key",
            got=signature,
            expected=f"a signature by the key {public.name.hex()}",
        )
    return attest


def _refused(what: str, got: int, expected: str) -> AlgorithmError:
    name = _HASH_NAMES.get(got, f"{got:#06x}")
    return AlgorithmError(f"{what} is not accepted", got=name, expected=expected)
