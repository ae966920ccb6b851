"""The policy block: which roots, and how much a certificate must be worth."""

from pathlib import Path

import pytest

from aicert import verify
from aicert.errors import Error
from aicert.policy import Policy
from aicert.trust import TrustStore
from aicert.verify import Assurance
from blocks import VerificationPolicy

PEM = Path(__file__).parent / "root.pem"


def test_a_software_tpm_is_refused_unless_it_is_allowed() -> None:
    refusing, accepting = VerificationPolicy(), VerificationPolicy(allow_simulated=True)
    assert refusing.demands().load().policy == Policy.default(Assurance.HARDWARE)
    assert accepting.demands().load().policy == Policy.default(Assurance.SIMULATED)


def test_a_policy_file_says_itself_how_much_a_certificate_must_be_worth(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("policy: 1\nname: strict\nassurance: measured\n")
    block = VerificationPolicy(policy=file, allow_simulated=True)
    loaded = block.demands().load().policy
    assert loaded == Policy.load(file)
    assert block.check()[0].ok
    file.write_text("policy: 1\nname: strict\nassurance: mesured\n")
    (check,) = block.check()
    assert not check.ok and "mesured" in check.found


def test_the_roots_are_the_built_in_ones_and_those_given(tmp_path: Path) -> None:
    builtin = set(TrustStore.builtin().list())
    assert set(VerificationPolicy().demands().load().trust.list()) == builtin
    (tmp_path / "a.pem").write_bytes(PEM.read_bytes())
    for worth, policy in (
        ("simulated", VerificationPolicy(roots=PEM)),
        ("simulated", VerificationPolicy(roots=tmp_path)),
        ("hardware", VerificationPolicy(hardware_roots=tmp_path)),
    ):
        (added,) = set(policy.demands().load().trust.list()) - builtin
        assert added.assurance == worth


def test_a_root_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    policy = VerificationPolicy(roots=tmp_path / "none")
    with pytest.raises(Error):
        policy.demands().load()
    with pytest.raises(Error):
        policy.verify(b"{}")
    (check,) = policy.check()
    assert not check.ok
    assert VerificationPolicy(roots=PEM).check()[0].ok


def test_verifying_uses_the_roots_and_the_least_assurance(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def watched(data: bytes, **arguments: object) -> str:
        seen.update(arguments, data=data)
        return "verdict"

    monkeypatch.setattr(verify, "verify", watched)
    policy = VerificationPolicy(allow_simulated=True, roots=PEM)
    assert policy.verify(b"x", model=Path("/m"), ignore=["a"]) == "verdict"  # type: ignore[comparison-overlap]
    assert seen == {
        "data": b"x",
        "trust": policy.demands().load().trust,
        "model": Path("/m"),
        "ignore": ["a"],
        "policy": Policy.default(Assurance.SIMULATED),
    }


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(Error):
        VerificationPolicy(allow_simulated=True).verify(b"{}")
