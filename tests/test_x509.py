"""The attestation key's chain: what vouches for it, and every way not to."""

import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import x509
from aicert.errors import Error
from aicert.trust import Pin, TrustStore, fingerprint
from tests.support.forger import AK_USAGE, EK_USAGE, STARTED

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)

AK, ROOT, UPPER, LOWER, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(5))
RSA = rsa.generate_private_key(65537, 2048)


def usage(*names: str) -> cx509.KeyUsage:
    known = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return cx509.KeyUsage(**{name: name in names for name in known})


def name(text: str) -> cx509.Name:
    return cx509.Name([cx509.NameAttribute(NameOID.COMMON_NAME, text, _validate=len(text) <= 64)])


def issue(
    subject: str,
    issuer: str,
    by: Any,
    *,
    key: Any = None,
    ca: bool | None = True,
    path_length: int | None = None,
    key_usage: cx509.KeyUsage | None = None,
    extended: Iterable[ObjectIdentifier] = (),
    more: Iterable[tuple[cx509.ExtensionType, bool]] = (),
    since: datetime = STARTED - DAY,
    until: datetime = STARTED + DAY,
    **signing: Any,
) -> bytes:
    """Make one certificate, DER; without options a good CA's."""
    public = (by if key is None else key).public_key()
    builder = (
        cx509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(cx509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )
    if ca is not None:
        builder = builder.add_extension(cx509.BasicConstraints(ca, path_length), True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, True)
    if extended := list(extended):
        builder = builder.add_extension(cx509.ExtendedKeyUsage(extended), False)
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    algorithm = signing.pop("hash", hashes.SHA256())
    return builder.sign(by, algorithm, **signing).public_bytes(Encoding.DER)


CERT_SIGN = usage("key_cert_sign", "crl_sign")


def root(**options: Any) -> bytes:
    return issue("root", "root", **{"by": ROOT, "key_usage": CERT_SIGN, **options})


def upper(**options: Any) -> bytes:
    given = {"by": ROOT, "key": UPPER, "path_length": 1, "key_usage": CERT_SIGN}
    return issue("upper", "root", **{**given, **options})


def lower(**options: Any) -> bytes:
    given = {"by": UPPER, "key": LOWER, "path_length": 0, "key_usage": CERT_SIGN}
    return issue("lower", "upper", **{**given, **options})


def leaf(**options: Any) -> bytes:
    given = {"subject": "AK", "issuer": "lower", "by": LOWER, "key": AK, "ca": False,
             "key_usage": usage("digital_signature"), "extended": [AK_USAGE]}  # fmt: skip
    return issue(**{**given, **options})


ROOT_DER = root()
CHAIN = (leaf(), lower(), upper(), ROOT_DER)


def pinned(*ders: bytes) -> TrustStore:
    prints = [fingerprint(cx509.load_der_x509_certificate(der)) for der in ders]
    return TrustStore().with_pins(Pin("ours", print_, "simulated", "test") for print_ in prints)


TRUST = pinned(ROOT_DER)


def check(
    chain: Sequence[bytes],
    trust: TrustStore = TRUST,
    *,
    at: Iterable[datetime] = (STARTED,),
    key: Any = None,
) -> x509.ChainInfo:
    return x509.verify_chain(chain, trust, at=at, key=(key or AK).public_key())


def refuses(
    error: type[x509.ChainError], chain: Sequence[bytes], *arguments: Any, **options: Any
) -> x509.ChainError:
    """Check that a chain is refused with exactly this error."""
    with pytest.raises(x509.ChainError) as caught:
        check(chain, *arguments, **options)
    assert type(caught.value) is error, caught.value.diagnostics()
    return caught.value


# -- what is accepted ------------------------------------------------------------------------------


def test_a_good_chain_names_its_pin_and_the_time_in_which_all_of_it_is_valid() -> None:
    ends = STARTED + timedelta(hours=3)
    begins = STARTED - timedelta(hours=2)
    chain = (leaf(), lower(until=ends), upper(since=begins), ROOT_DER)
    info = check(chain)
    assert (info.pin.name, info.not_before, info.not_after) == ("ours", begins, ends)


def test_a_root_may_vouch_for_a_key_directly() -> None:
    assert check((leaf(issuer="root", by=ROOT), ROOT_DER)).pin.name == "ours"


PSS = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.DIGEST_LENGTH)
PKCS1 = padding.PKCS1v15()


@pytest.mark.parametrize(
    ("by", "signing"),
    [
        (RSA, {"hash": hashes.SHA256(), "rsa_padding": PKCS1}),
        (RSA, {"hash": hashes.SHA384(), "rsa_padding": PSS}),
        (RSA, {"hash": hashes.SHA512(), "rsa_padding": PKCS1}),
        (ec.generate_private_key(ec.SECP384R1()), {"hash": hashes.SHA384()}),
        (ec.generate_private_key(ec.SECP521R1()), {"hash": hashes.SHA512()}),
    ],
    ids=["rsa", "rsa-pss", "rsa-sha512", "p384", "p521"],
)
def test_links_may_be_signed_by_rsa_and_by_the_nist_curves(by: Any, signing: Any) -> None:
    top = root(by=by, **signing)
    check((leaf(issuer="root", by=by, **signing), top), pinned(top))


def test_an_rsa_attestation_key_is_vouched_for_as_an_ecc_one() -> None:
    check((leaf(key=RSA), *CHAIN[1:]), key=RSA)


@pytest.mark.parametrize(
    "options",
    [
        {"extended": [AK_USAGE]},
        {"extended": [ObjectIdentifier("1.3.6.1.4.1.311.10.3.12"), AK_USAGE], "ca": None},
        {"extended": [EK_USAGE]},
        {"extended": []},
    ],
    ids=["AK usage", "Azure", "Google 2021", "Google 2026"],
)
def test_each_form_of_leaf_that_clouds_issue_is_accepted(options: Any) -> None:
    check((leaf(**options), *CHAIN[1:]))


def test_a_ca_without_key_usage_is_accepted_as_openssl_makes_them() -> None:
    top = root(key_usage=None)
    check((leaf(), lower(), upper(), top), pinned(top))


def test_names_longer_than_the_standard_allows_neither_fail_nor_warn() -> None:
    """Google's have up to 84 characters. A warning would go to the user's terminal."""
    long = "x" * 100
    chain = (
        leaf(issuer=long, by=UPPER),
        issue(long, "root", ROOT, key=UPPER, key_usage=CERT_SIGN),
        ROOT_DER,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(chain)


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(4))
def test_every_certificate_must_be_valid_at_every_time(place: int) -> None:
    for options, error in (
        ({"until": STARTED - SECOND}, x509.ExpiredError),
        ({"since": STARTED + SECOND}, x509.NotYetValidError),
    ):
        made = (leaf, lower, upper, root)[place](**options)
        chain = (*CHAIN[:place], made, *CHAIN[place + 1 :])
        trust = pinned(ROOT_DER, made)
        refuses(error, chain, trust)
        # An iterator is used up once read: the dates of all certificates are checked nevertheless.
        refuses(error, chain, trust, at=iter([STARTED]))
        refuses(error, chain, trust, at=(time for time in [STARTED - SECOND, STARTED]))
        with pytest.raises(error):
            check(chain, trust, at=[STARTED, STARTED])


def test_a_run_that_outlives_a_certificate_is_refused() -> None:
    chain = (leaf(until=STARTED + 60 * SECOND), *CHAIN[1:])
    check(chain, at=[STARTED, STARTED + 60 * SECOND])
    refuses(x509.ExpiredError, chain, at=[STARTED, STARTED + 61 * SECOND])


def test_the_first_and_the_last_second_are_valid() -> None:
    check(CHAIN, at=[STARTED - DAY, STARTED + DAY])
    refuses(x509.NotYetValidError, CHAIN, at=[STARTED - DAY - SECOND])
    refuses(x509.ExpiredError, CHAIN, at=[STARTED + DAY + SECOND])


@pytest.mark.parametrize("at", [(), (STARTED.replace(tzinfo=None),)], ids=["none", "naive"])
def test_a_caller_must_name_a_time_with_a_zone(at: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        check(CHAIN, at=at)


# -- form ------------------------------------------------------------------------------------------


def test_a_chain_must_have_one_to_eight_certificates() -> None:
    refuses(x509.ChainLengthError, ())
    refuses(x509.ChainLengthError, [CHAIN[0]] * 9)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda der: b"",
        lambda der: der[:-1],
        lambda der: der + b"\0",
        lambda der: der + der,
        lambda der: b"garbage",
        lambda der: bytes(20_000),
        # The same certificate in BER: a length in three bytes where DER has two.
        lambda der: der[:1] + b"\x83\0" + der[2:4] + der[4:],
    ],
    ids=["empty", "cut", "trailing", "doubled", "garbage", "too large", "BER"],
)
def test_a_certificate_that_is_not_der_is_refused(place: int, spoil: Any) -> None:
    bad = spoil(CHAIN[place])
    assert bad != CHAIN[place]
    refuses(x509.ChainParseError, (*CHAIN[:place], bad, *CHAIN[place + 1 :]))


def test_a_certificate_larger_than_the_limit_is_refused_unread() -> None:
    filler = cx509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(16 << 10))
    refuses(x509.ChainParseError, (leaf(more=[(filler, False)]), *CHAIN[1:]))


def test_a_certificate_may_stand_in_a_chain_once() -> None:
    refuses(x509.ChainLoopError, (CHAIN[0], CHAIN[1], CHAIN[1], *CHAIN[2:]))
    refuses(x509.ChainLoopError, (*CHAIN, ROOT_DER))


# -- links -----------------------------------------------------------------------------------------


def test_a_missing_intermediate_is_refused() -> None:
    for place in (1, 2):
        error = refuses(x509.ChainIssuerError, (*CHAIN[:place], *CHAIN[place + 1 :]))
        assert error.advice
    refuses(x509.ChainIssuerError, (CHAIN[0], CHAIN[2], CHAIN[1], CHAIN[3]))


def test_a_chain_that_stops_before_its_root_is_refused() -> None:
    for end in (1, 2, 3):
        refuses(x509.IncompleteChainError, CHAIN[:end])


@pytest.mark.parametrize("place", range(3))
def test_a_link_by_another_key_with_the_right_name_is_refused(place: int) -> None:
    made = (leaf, lower, upper)[place](by=OTHER, key=(AK, LOWER, UPPER)[place])
    refuses(x509.ChainSignatureError, (*CHAIN[:place], made, *CHAIN[place + 1 :]))


def test_a_root_must_be_pinned_by_its_bytes_not_by_its_name_or_key() -> None:
    refuses(x509.UnpinnedRootError, CHAIN, TrustStore())
    refuses(x509.UnpinnedRootError, CHAIN, TrustStore.builtin())
    refuses(x509.UnpinnedRootError, (*CHAIN[:3], root()))


def test_a_self_signed_key_is_refused_even_if_pinned() -> None:
    """The ancestor of this system let a self-signed attestation key pass."""
    own = leaf(issuer="AK", by=AK)
    refuses(x509.UnpinnedRootError, (own,))
    refuses(x509.NotACaError, (own,), pinned(own))


def test_a_pin_counts_only_for_a_root() -> None:
    for end in (1, 2, 3):
        error = refuses(x509.IncompleteChainError, CHAIN[:end], pinned(CHAIN[end - 1]))
        assert error.advice == "pin the root, not a certificate below it"


def test_a_pinned_root_must_be_signed_by_itself() -> None:
    top = root(by=OTHER, key=ROOT)
    refuses(x509.ChainSignatureError, (*CHAIN[:3], top), pinned(top))


# -- authorities -----------------------------------------------------------------------------------

NOT_CAS = [
    {"ca": False, "path_length": None},
    {"ca": None},
    {"key_usage": usage("crl_sign")},
    {"key_usage": usage("digital_signature")},
]


@pytest.mark.parametrize("options", NOT_CAS, ids=["CA:FALSE", "none", "CRLs only", "signs only"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_whoever_issues_must_be_a_ca(place: int, options: Any) -> None:
    made = (leaf, lower, upper, root)[place](**options)
    chain = (*CHAIN[:place], made, *CHAIN[place + 1 :])
    refuses(x509.NotACaError, chain, pinned(ROOT_DER, made))


def test_a_ca_may_not_issue_a_longer_chain_than_it_was_allowed() -> None:
    refuses(x509.PathLengthError, (*CHAIN[:2], upper(path_length=0), ROOT_DER))
    top = root(path_length=1)
    refuses(x509.PathLengthError, (*CHAIN[:3], top), pinned(top))
    top = root(path_length=2)
    check((*CHAIN[:3], top), pinned(top))


# -- keys, hashes, extensions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "weak",
    [
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
    ],
    ids=["rsa-1024", "rsa-exponent-3", "secp256k1", "p224"],
)
def test_a_weak_key_anywhere_is_refused(weak: Any) -> None:
    refuses(x509.WeakError, (leaf(by=weak), lower(key=weak), *CHAIN[2:]))
    refuses(x509.WeakError, (leaf(key=weak), *CHAIN[1:]), key=weak)
    top = root(by=weak)
    refuses(x509.WeakError, (leaf(issuer="root", by=weak), top), pinned(top))


def test_an_edwards_key_is_refused() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    refuses(x509.WeakError, (leaf(by=edwards, hash=None), lower(key=edwards), CHAIN[2], ROOT_DER))


_SHA256_RSA = bytes.fromhex("06092a864886f70d01010b")


def with_hash(der: bytes, number: int, algorithm: Any) -> bytes:
    """The same certificate signed by RSA over another hash: the library would not make it."""
    tbs = cx509.load_der_x509_certificate(der).tbs_certificate_bytes
    old = der[der.index(tbs) + len(tbs) :]
    oid = _SHA256_RSA[:-1] + bytes([number])
    new = tbs.replace(_SHA256_RSA, oid)
    signature = RSA.sign(new, padding.PKCS1v15(), algorithm)
    assert len(signature) == 256
    made = der.replace(tbs, new).replace(old, old.replace(_SHA256_RSA, oid)[:-256] + signature)
    assert len(made) == len(der) != der.count(oid)
    return made


@pytest.mark.parametrize(
    ("number", "algorithm"), [(5, hashes.SHA1()), (4, hashes.MD5()), (14, hashes.SHA224())]
)
def test_a_good_signature_over_a_weak_hash_is_refused(number: int, algorithm: Any) -> None:
    top = root(by=RSA)
    good = leaf(issuer="root", by=RSA)
    check((good, top), pinned(top))
    weak = with_hash(good, number, algorithm)
    error = refuses(x509.WeakError, (weak, top), pinned(top))
    assert str(error.got).lower() == algorithm.name
    weak_root = with_hash(top, number, algorithm)
    refuses(x509.WeakError, (good, weak_root), pinned(weak_root))


def test_the_algorithm_named_outside_the_signed_part_must_be_the_one_within() -> None:
    top = root(by=RSA)
    good = leaf(issuer="root", by=RSA)
    at = good.rindex(_SHA256_RSA) + len(_SHA256_RSA) - 1
    mixed = good[:at] + b"\x0c" + good[at + 1 :]  # SHA-384
    refuses(x509.ChainSignatureError, (mixed, top), pinned(top))


UNKNOWN = cx509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\0")
NAMES = cx509.NameConstraints([cx509.DNSName("example.com")], None)
POLICIES = cx509.PolicyConstraints(0, None)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("extension", "critical"),
    [(UNKNOWN, True), (POLICIES, True), (cx509.InhibitAnyPolicy(0), True), (NAMES, True),
     (NAMES, False)],
    ids=["unknown", "policy", "any policy", "names, critical", "names"],
)  # fmt: skip
def test_a_demand_that_is_not_honoured_is_refused_wherever_it_stands(
    place: int, extension: cx509.ExtensionType, critical: bool
) -> None:
    made = (leaf, lower, upper, root)[place](more=[(extension, critical)])
    chain = (*CHAIN[:place], made, *CHAIN[place + 1 :])
    refuses(x509.ExtensionError, chain, pinned(ROOT_DER, made))


def test_an_unknown_extension_that_is_no_demand_is_accepted() -> None:
    check((leaf(more=[(UNKNOWN, False)]), *CHAIN[1:]))


# -- the leaf --------------------------------------------------------------------------------------


def test_the_leaf_must_be_the_attestation_keys() -> None:
    refuses(x509.LeafKeyError, CHAIN, key=OTHER)
    refuses(x509.LeafKeyError, CHAIN, key=RSA)
    refuses(x509.LeafKeyError, tuple(reversed(CHAIN)))


TLS = [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize(
    "options",
    [
        {"ca": True},
        {"key_usage": CERT_SIGN},
        {"key_usage": usage("digital_signature", "key_cert_sign")},
        {"key_usage": None},
        {"key_usage": usage("content_commitment")},
        {"extended": TLS},
        {"extended": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]},
        {"extended": [EK_USAGE], "key_usage": usage("key_encipherment")},
        {"extended": [EK_USAGE], "key_usage": usage("key_agreement")},
        {"extended": [EK_USAGE], "key_usage": usage("digital_signature", "key_encipherment")},
        {"extended": [EK_USAGE], "key_usage": usage("digital_signature", "key_agreement")},
        {"extended": [], "key_usage": usage("digital_signature", "key_encipherment")},
    ],
    ids=["CA", "signs certificates", "signs both", "no key usage", "no digitalSignature", "TLS",
         "any usage", "RSA EK", "ECC EK", "RSA EK that signs", "ECC EK that signs", "server key"],
)  # fmt: skip
def test_a_certificate_for_another_use_is_refused(options: Any) -> None:
    refuses(x509.LeafUsageError, (leaf(**options), *CHAIN[1:]))


# -- robustness ------------------------------------------------------------------------------------


def test_a_signature_of_broken_octets_is_refused() -> None:
    """Where a signature ends in zero bits, DER may say that they are unused; nothing signs that."""
    der = leaf()
    while der[-1] & 1:
        der = leaf()
    at = len(der) - len(cx509.load_der_x509_certificate(der).signature) - 1
    assert der[at] == 0
    check((der, *CHAIN[1:]))
    error = refuses(x509.ChainParseError, (der[:at] + b"\x01" + der[at + 1 :], *CHAIN[1:]))
    assert "whole octets" in error.message


def test_no_bit_of_any_certificate_can_be_flipped() -> None:
    for place, der in enumerate(CHAIN):
        for position in range(len(der) * 8):
            mutant = bytearray(der)
            mutant[position // 8] ^= 1 << position % 8
            with pytest.raises(x509.ChainError):
                check((*CHAIN[:place], bytes(mutant), *CHAIN[place + 1 :]))


@settings(max_examples=500, deadline=None)
@given(chain=st.lists(st.one_of(st.sampled_from(CHAIN), st.binary(max_size=99)), max_size=9))
def test_no_list_of_certificates_and_bytes_crashes(chain: list[bytes]) -> None:
    if tuple(chain) == CHAIN:
        return
    with pytest.raises(x509.ChainError):
        check(chain)


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_no_mutated_chain_crashes_or_passes(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 3))
    mutant = bytearray(CHAIN[place])
    for _ in range(data.draw(st.integers(1, 8))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    # The root is pinned as it is then: its bytes are the attacker's only where a user pins them.
    trust = TRUST
    if place == 3:
        try:
            trust = pinned(bytes(mutant))
        except Exception:
            pass
    try:
        check((*CHAIN[:place], bytes(mutant), *CHAIN[place + 1 :]), trust)
    except Error:
        return
    assert bytes(mutant) == CHAIN[place]
