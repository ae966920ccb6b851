"""Lineage: whole chains, broken ones, and what somebody might slip into one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aicert import lineage, links
from aicert.certificate import Certificate
from aicert.cli import main
from aicert.errors import Error
from aicert.lineage import MissingError, Places, RefusedError, TooLargeError, trace
from aicert.links import LinkError
from aicert.log import parse_run
from aicert.trust import Pin, TrustStore, fingerprint
from aicert.verify import Assurance, Verdict, verify
from tests.support.forger import Authority, Forger
from tests.support.linked import BAR, child, model_input

ROOT = Forger()
REAL = Authority(name="maker")
TRUST = TrustStore.builtin().with_pins(
    [
        Pin("forger", fingerprint(ROOT.authority.root), "simulated", "test"),
        Pin("maker", fingerprint(REAL.root), "hardware", "test"),
    ]
)
BASE = ROOT.certificate()
TUNED = child([BASE], ROOT, name="tuned").certificate()
EVALUATED = child([TUNED], ROOT, bar=BAR, metrics={"accuracy": 1}, name="bench").certificate()


def checked(data: bytes, least: Assurance = Assurance.SIMULATED) -> Verdict:
    return verify(data, trust=TRUST, least=least)


def among(*certificates: Certificate) -> Callable[[str], bytes | None]:
    held = {links.name(one): one.encode() for one in certificates}
    return held.get


def follow(start: Certificate, *others: Certificate, **options: Any) -> lineage.Node:
    return trace(checked(start.encode()), among(*others), checked, **options)


# -- what holds ------------------------------------------------------------------------------------


def test_a_chain_is_followed_to_its_end() -> None:
    node = follow(EVALUATED, TUNED, BASE)
    assert [one.verdict.run.job.spec.name for one in node.every().values()] == [
        "bench", "tuned", "digits",
    ]  # fmt: skip
    verdict = lineage.said_by(node.verdict, node)
    assert any("2 certificates behind it verified" in line for line in verdict.proved)
    assert any("--recursive" in line for line in node.verdict.not_proved)
    assert not any("--recursive" in line for line in verdict.not_proved)


def test_a_certificate_that_two_lead_to_is_looked_for_once() -> None:
    left = child([BASE], ROOT, name="left").certificate()
    right = child([BASE], ROOT, name="right").certificate()
    both = child([left, right], ROOT, name="both").certificate()
    asked: list[str] = []
    find = among(left, right, BASE)

    def counted(digest: str) -> bytes | None:
        asked.append(digest)
        return find(digest)

    node = trace(checked(both.encode()), counted, checked)
    assert len(node.every()) == 4 and len(asked) == 3
    assert lineage.tree(node).count("└─ data") == 4  # digits is drawn in full once


def test_a_stamp_that_was_added_later_breaks_no_link(tmp_path: Path) -> None:
    # The link names the file before the stamp; `links.name` says which that is.
    assert links.name(BASE) == BASE.digest
    (tmp_path / "renamed.json").write_bytes(BASE.encode())
    places = Places([str(tmp_path)])
    assert places.find(links.name(BASE)) == BASE.encode()


def test_one_file_of_a_model_may_be_an_input() -> None:
    weights = parse_run(BASE.records).outputs.manifest.files[1].sha256
    part = model_input(
        "model0", BASE, kind="file", files=1, sha256=weights, root="ab" * 32, manifest="cd" * 32
    )
    forged = child([BASE], ROOT, inputs=[part]).certificate()
    assert len(follow(forged, BASE).every()) == 2


def test_the_chain_is_worth_what_its_weakest_is() -> None:
    strong = child([BASE], Forger(authority=REAL), name="strong").certificate()
    node = follow(strong, BASE)
    assert node.verdict.assurance is Assurance.HARDWARE
    assert node.weakest is Assurance.SIMULATED
    said = lineage.said_by(node.verdict, node).proved[-1]
    assert "the weakest of all is worth simulated" in said


# -- what does not ---------------------------------------------------------------------------------


def test_a_certificate_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingError) as caught:
        follow(EVALUATED, TUNED)
    assert "model0 <- model0" in caught.value.message
    assert links.name(BASE) in str(caught.value.expected)
    partial = follow(EVALUATED, TUNED, partial=True)
    assert [edge.certificate for edge in partial.missing()] == [links.name(BASE)]
    assert "MISSING" in lineage.tree(partial)


def test_another_certificate_in_the_place_of_a_parent_is_refused() -> None:
    other = Forger(authority=ROOT.authority).certificate()  # as good, with the same weights
    swapped = {links.name(BASE): other.encode()}
    with pytest.raises(LinkError):
        trace(checked(TUNED.encode()), swapped.get, checked)


def test_an_input_that_its_parent_did_not_make_is_refused() -> None:
    other = model_input("model0", BASE, root="ab" * 32, manifest="cd" * 32)
    with pytest.raises(LinkError):
        follow(child([BASE], ROOT, inputs=[other]).certificate(), BASE)


def test_a_parent_that_does_not_verify_is_refused_with_its_reason() -> None:
    edited = BASE.encode().replace(b'"loss":0.25', b'"loss":0.24')
    with pytest.raises(RefusedError) as caught:
        trace(checked(TUNED.encode()), {links.name(BASE): edited}.get, checked)
    assert "[log." in caught.value.message or "[" in caught.value.message


def test_a_parent_that_is_worth_less_than_is_asked_for_is_refused() -> None:
    strong = child([BASE], Forger(authority=REAL), name="strong").certificate()
    verdict = checked(strong.encode(), Assurance.HARDWARE)
    with pytest.raises(RefusedError) as caught:
        trace(verdict, among(BASE), lambda data: checked(data, Assurance.HARDWARE))
    assert "[policy.assurance]" in caught.value.message


def test_a_parent_that_nobody_trusted_vouches_for_is_refused() -> None:
    stranger = Forger(authority=Authority(name="stranger")).certificate()
    with pytest.raises(RefusedError) as caught:
        follow(child([stranger], ROOT).certificate(), stranger)
    assert "[chain.unpinned-root]" in caught.value.message


def test_a_circle_cannot_be_made_and_does_not_go_round() -> None:
    # Whatever a place returns for the link back, it is not the file that the link names.
    with pytest.raises(LinkError):
        trace(checked(TUNED.encode()), lambda _: TUNED.encode(), checked)


def test_a_lineage_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "MAX_DEPTH", 3)
    chain = [BASE]
    for number in range(5):
        chain.append(child([chain[-1]], ROOT, name=f"m{number}").certificate())
    with pytest.raises(TooLargeError):
        follow(chain[-1], *chain)
    monkeypatch.setattr(lineage, "MAX_DEPTH", 9)
    monkeypatch.setattr(lineage, "MAX_CERTIFICATES", 4)
    with pytest.raises(TooLargeError):
        follow(chain[-1], *chain)


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for one in (BASE, TUNED, EVALUATED):
        folder = tmp_path / "store" / "certificates" / one.digest
        folder.mkdir(parents=True)
        (folder / "certificate.json").write_bytes(one.encode())
    (tmp_path / "root.pem").write_bytes(ROOT.authority.root_pem)
    return tmp_path / "store"


def command(store: Path, name: str, *arguments: str, of: Certificate = EVALUATED) -> Result:
    certificate = store / "certificates" / of.digest / "certificate.json"
    root = ["--root", str(store.parent / "root.pem"), "--allow-simulated"]
    return CliRunner().invoke(main, [name, str(certificate), *root, *arguments])


def test_verify_finds_the_lineage_in_the_store_of_the_certificate(store: Path) -> None:
    done = command(store, "verify", "--recursive")
    assert done.exit_code == 0, done.output
    assert "2 certificates behind it verified" in done.output
    done = command(store, "verify", "--recursive", "--json")
    told = json.loads(done.output)["lineage"]
    assert told["weakest"] == "simulated"
    assert [one["name"] for one in told["certificates"]] == ["bench", "tuned", "digits"]


def test_what_is_elsewhere_is_named_with_from(store: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart.json"
    (store / "certificates" / BASE.digest / "certificate.json").rename(apart)
    done = command(store, "verify", "--recursive")
    assert done.exit_code == 3 and "lineage.missing" in done.output and "--from" in done.output
    assert command(store, "verify", "--recursive", "--from", str(apart)).exit_code == 0
    assert command(store, "verify", "--recursive", "--from", str(tmp_path)).exit_code == 0
    done = command(store, "verify", "--recursive", "--from", str(tmp_path / "nowhere.json"))
    assert done.exit_code == 3 and "cli.unreadable" in done.output
    done = command(store, "verify", "--from", str(apart))
    assert done.exit_code == 2 and "--recursive" in done.output


def test_a_refused_parent_refuses_the_whole(store: Path) -> None:
    place = store / "certificates" / BASE.digest / "certificate.json"
    place.write_bytes(place.read_bytes().replace(b'"loss":0.25', b'"loss":0.24'))
    done = command(store, "verify", "--recursive")
    assert done.exit_code == 1 and "lineage.refused" in done.output


@pytest.mark.parametrize(
    ("form", "expected"),
    [("text", "├─ model0 ← tuned"), ("mermaid", "c1 -->|model0| c0"), ("json", '"weakest"')],
)
def test_the_lineage_is_drawn(store: Path, form: str, expected: str) -> None:
    done = command(store, "lineage", "--format", form)
    assert done.exit_code == 0, done.output
    assert expected in done.output


def test_cards_show_the_lineage_and_the_evaluations_that_were_verified(store: Path) -> None:
    bench = str(store / "certificates" / EVALUATED.digest / "certificate.json")
    for form, expected in (
        ("card", ("├─ model0 ← digits", "passed accuracy")),
        ("html", ("← digits", '<span class="badge good">passed</span>', EVALUATED.digest)),
    ):
        done = command(
            store, "export", "--format", form, "--recursive", "--evaluation", bench, of=TUNED
        )
        assert done.exit_code == 0, done.output
        assert all(text in done.stdout for text in expected)
        alone = command(store, "export", "--format", form, of=TUNED).stdout
        assert expected[-1] not in alone
        assert BASE.digest in alone  # the link stands in the certificate itself


def test_a_card_of_a_broken_lineage_is_not_made(store: Path, tmp_path: Path) -> None:
    (store / "certificates" / BASE.digest / "certificate.json").unlink()
    out = str(tmp_path / "views")
    done = command(store, "export", "--out", out, "--recursive", of=TUNED)
    assert done.exit_code == 3 and "lineage.missing" in done.output
    assert not Path(out).exists()
    done = command(store, "export", "--out", out, "--from", out, of=TUNED)
    assert done.exit_code == 2 and "--recursive" in done.output


def test_a_drawing_with_a_gap_says_so(store: Path) -> None:
    (store / "certificates" / BASE.digest / "certificate.json").unlink()
    done = command(store, "lineage")
    assert done.exit_code == 1
    assert f"MISSING  certificate sha256:{BASE.digest}" in done.output
    assert "1 certificate not found" in done.output


def test_files_that_are_no_certificates_do_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").write_bytes(BASE.encode())
    assert Places([str(tmp_path)]).find(BASE.digest) == BASE.encode()
    assert Places([str(tmp_path)]).find("00" * 32) is None
    with pytest.raises(Error):
        Places([str(tmp_path / "a.json")])
