"""The card as a page, in a real browser: it checks itself and files, and forgeries are refused."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from aicert import canonical
from aicert.certificate import Certificate
from aicert.manifest import File
from aicert.trust import TrustStore
from aicert.verify import Assurance, Verdict, verify
from aicert.views.page import page
from tests.support.forger import RECORDS, committing, run_events
from tests.support.linked import BAR, child
from tests.support.views import HOSTILE, hostile, made

CASES = Path(__file__).parents[1] / "conformance" / "cases"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium is not installed"),
]

GOOD_ONE = made()
RECORDED = made(events=committing(run_events(), "lines", RECORDS))
TUNED = child([GOOD_ONE], name="tuned").certificate()
EVALUATED = child([TUNED], bar=BAR, metrics={"accuracy": 1e-7, "10": 3, "9": "x"}).certificate()
GOOD = {"metrics.json": b"{}", "model.safetensors": b"weights"}


class Browser:
    """A headless Chromium with one page at a time."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver = driver
        self._folder = folder
        self._count = 0

    def show(self, text: str) -> str:
        """Open a page from a file, and return what its check of itself says."""
        self._count += 1
        path = self._folder / f"{self._count}.html"
        path.write_text(text, encoding="utf-8")
        self.driver.get(path.as_uri())
        return self.result("self")

    def result(self, name: str) -> str:
        """Wait for a result, and return its kind and text."""
        element = self.driver.find_element(By.ID, name)
        WebDriverWait(self.driver, 10, 0.02).until(
            lambda _: element.text and not element.text.startswith("Reading")
        )
        return f"{element.get_attribute('class')}: {element.text}"

    def choose(self, *paths: Path, folder: bool = False) -> str:
        """Choose files, or a folder, as a person does, and return what the page says."""
        self.run("document.getElementById('files').replaceChildren()")
        field = self.driver.find_element(By.ID, "pick-folder" if folder else "pick")
        field.send_keys("\n".join(map(str, paths)))
        return self.result("files")

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what Chromium has logged since the last time."""
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver, tmp_path_factory.mktemp("pages"))
    finally:
        driver.quit()


def verified(certificate: Certificate, tmp_path: Path, worth: Any) -> Verdict:
    root = tmp_path / "root.der"
    root.write_bytes(certificate.attestation_key.chain[-1])
    trust = TrustStore().with_roots(root, assurance=worth)
    return verify(certificate.encode(), trust=trust, least=Assurance.SIMULATED)


def put(text: str, data: bytes) -> str:
    """Put another certificate into a page, and its digest."""
    held = base64.b64encode(data).decode()
    text = re.sub(r'(id="certificate">)[^<]*', rf"\g<1>{held}", text)
    return re.sub(r'(id="digest">)[^<]*', rf"\g<1>{hashlib.sha256(data).hexdigest()}", text)


def bare(text: str) -> str:
    """Make a page say nothing that would have to be measured."""
    return re.sub(r' data-is="[^"]*"', "", text)


# -- the page checks itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "certificate",
    [made(), made(kind="rsa"), made(pcrs=tuple(range(24))), hostile(), RECORDED, TUNED, EVALUATED],
)
def test_a_page_agrees_with_its_certificate(browser: Browser, certificate: Certificate) -> None:
    assert browser.show(page(certificate)).startswith("result good: This page agrees")


def test_a_real_tpms_certificate_is_accepted(browser: Browser) -> None:
    data = (CASES / "real-good" / "certificate.json").read_bytes()
    assert browser.show(page(Certificate.parse(data))).startswith("result good")


COVERED = re.compile(
    r"quote\.(?!type)|json\.not-canonical|json\.duplicate|log\.digest|log\.replay|dsse\.|boot\."
    r"|ak\.attributes|tpm\.trailing|tpm\.structure"
)


def corpus() -> Iterator[Any]:
    """The cases of the verifiers' corpus that turn on something which the page checks too."""
    for path in sorted(CASES.iterdir()):
        expect = json.loads((path / "case.json").read_text())["expect"]
        if expect == "verified" or COVERED.match(expect):
            yield pytest.param(path, expect, id=path.name)


@pytest.mark.parametrize(("case", "expect"), corpus())
def test_the_page_judges_the_corpus_as_the_verifier_does(
    browser: Browser, case: Path, expect: str
) -> None:
    data = (case / "certificate.json").read_bytes()
    if expect == "verified":
        said = browser.show(page(Certificate.parse(data)))
        assert said.startswith("result good"), said
    else:
        said = browser.show(put(bare(page(made())), data))
        assert said.startswith("result bad: REFUSED")
        assert "leaves out" not in said  # that alone would refuse a page that shows nothing


def edit(change: Callable[[Any], None]) -> bytes:
    value = json.loads(made().encode())
    change(value)
    return canonical.dumps(value)


def other_file(value: Any) -> None:
    record = value["evidence"]["measurementLog"][-1]
    record["content"]["files"][0]["sha256"] = "00" * 32


def other_file_and_digest(value: Any) -> None:
    other_file(value)
    record = value["evidence"]["measurementLog"][-1]
    record["digests"][0]["digest"] = canonical.sha256(record["content"])


def other_statement(value: Any) -> None:
    payload = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
    payload["subject"][0]["digest"]["sha256"] = "00" * 32
    value["dsseEnvelope"]["payload"] = base64.b64encode(canonical.dumps(payload)).decode()


def fewer_events(value: Any) -> None:
    del value["evidence"]["measurementLog"][1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_file, "was changed"),
        (other_file_and_digest, "does not account for PCR 8"),
        (other_statement, "not signed by the attestation key"),
        (fewer_events, "record 1 of the log was changed"),
        (lambda v: v["evidence"]["quote"].update(v["evidence"]["baselineQuote"]), "account for"),
    ],
)
def test_a_forged_certificate_is_refused(
    browser: Browser, change: Callable[[Any], None], reason: str
) -> None:
    said = browser.show(put(page(made()), edit(change)))
    assert said.startswith("result bad: REFUSED")
    assert reason in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">digits</h1>", ">llama</h1>"),
        ("model.safetensors</code>", "model.bin</code>"),
        (hashlib.sha256(b"weights").hexdigest() + "</span>", "00" * 32 + "</span>"),
        ("file:train.py</code>", "file:other.py</code>"),
        ("python3 /inputs/code/train.py</code>", "python3 /inputs/code/good.py</code>"),
        (">0.25</div>", ">0.01</div>"),
        (">loss</div>", ">gain</div>"),
        ("2026-05-01T12:02:00Z</div>", "2027-05-01T12:02:00Z</div>"),
        (">none</div>", ">full</div>"),
        ("KEY", "000b" + "00" * 32),
    ],
)
def test_a_page_that_shows_something_else_is_refused(browser: Browser, old: str, new: str) -> None:
    text = page(GOOD_ONE)
    old = GOOD_ONE.keyid if old == "KEY" else old  # a key of its own in every process
    assert old in text
    said = browser.show(text.replace(old, new))
    assert said.startswith("result bad: REFUSED")
    assert "not measured" in said


def test_what_was_measured_must_stand_in_its_own_place(browser: Browser) -> None:
    """Two digests change places: each of them was measured, and neither for that input."""
    text = page(GOOD_ONE)
    for one, two in (("aa" * 32, "dd" * 32), ("file:train.py", "file:data")):
        swapped = text.replace(one, "~~~~").replace(two, one).replace("~~~~", two)
        assert swapped != text
        assert "not measured (input " in browser.show(swapped)


def test_another_certificate_is_not_named_as_that_of_an_input(browser: Browser) -> None:
    for certificate, name, digest in (
        (TUNED, "linked 0", GOOD_ONE.digest),
        (EVALUATED, "evaluates", TUNED.digest),
    ):
        text = page(certificate)
        shown = f'data-is="{name}">{digest}'
        assert shown in text
        said = browser.show(text.replace(shown, shown.replace(digest, "00" * 32)))
        assert f"not measured ({name})" in said


@pytest.mark.parametrize("name", ["input 1", "file 0", "value 0", "command", "root"])
def test_a_page_that_leaves_something_out_is_refused(browser: Browser, name: str) -> None:
    text = page(GOOD_ONE)
    assert f' data-is="{name}"' in text
    said = browser.show(text.replace(f' data-is="{name}"', ""))
    assert said.startswith("result bad: REFUSED")
    assert f"leaves out what was measured: {name}" in said


def test_a_page_says_what_it_does_not_check(browser: Browser) -> None:
    said = browser.show(page(GOOD_ONE))
    assert "not yet a verdict" in said
    _, _, rest = said.partition("Not checked here, but by the command:")
    for word in ("who vouches", "booted", "timestamps", "policy", "certificates", "honest"):
        assert word in rest


def test_a_page_with_another_digest_is_refused(browser: Browser) -> None:
    certificate = made()
    text = page(certificate).replace(f'id="digest">{certificate.digest}', 'id="digest">' + "0" * 64)
    assert "whose digest this page shows" in browser.show(text)
    assert "cannot be read" in browser.show(
        re.sub(r'(id="certificate">)[^<]*', r"\g<1>AAAA", page(certificate))
    )


# -- dropped files ---------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def opened(browser: Browser) -> Browser:
    browser.show(page(made()))
    return browser


def test_certified_files_are_recognised(opened: Browser, model: Path) -> None:
    weights = model / "model.safetensors"
    assert opened.choose(weights).startswith("result good: Certified and unaltered: 1 of 2")
    both = opened.choose(weights, model / "metrics.json")
    assert both.startswith("result good: All 2 certified files")
    assert opened.choose(model, folder=True).startswith("result good: All 2 certified files")


def test_a_renamed_file_is_recognised_by_its_content(opened: Browser, model: Path) -> None:
    renamed = (model / "model.safetensors").rename(model / "w.bin")
    assert "w.bin is model.safetensors" in opened.choose(renamed)


def altered(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"Weights")


def removed(model: Path) -> None:
    (model / "metrics.json").unlink()


def swapped(model: Path) -> None:
    (model / "metrics.json").write_bytes(b"weights")
    (model / "model.safetensors").write_bytes(b"{}")


@pytest.mark.parametrize("change", [altered, removed, swapped])
def test_a_folder_that_differs_is_refused(
    opened: Browser, model: Path, change: Callable[[Path], None]
) -> None:
    change(model)
    assert opened.choose(model, folder=True).startswith("result bad: REFUSED")


def test_an_altered_or_unknown_file_is_refused(opened: Browser, model: Path) -> None:
    altered(model)
    said = opened.choose(model / "model.safetensors")
    assert said.startswith("result bad: REFUSED")
    assert "not the certified file" in said
    (model / "x").write_bytes(b"x")
    assert "not one of the certified files" in opened.choose(model / "x", model / "metrics.json")


def test_a_file_besides_is_named(opened: Browser, model: Path) -> None:
    (model / "sub").mkdir()
    (model / "sub" / "more.py").write_text("x")
    said = opened.choose(model, folder=True)
    assert said.startswith("result warn: All 2 certified files are here and unaltered, and others")
    assert "sub/more.py: not certified" in said


def test_files_are_dropped_too(opened: Browser) -> None:
    opened.run(
        "const t = new DataTransfer(); t.items.add(new File(['weights'], 'model.safetensors'));"
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: t, bubbles: true, cancelable: true}))"
    )
    assert opened.result("files").startswith("result good: Certified and unaltered: 1 of 2")


@pytest.mark.parametrize("extra", [0, 55, 56])
def test_a_large_file_is_hashed_in_pieces(browser: Browser, tmp_path: Path, extra: int) -> None:
    """Above 64 MiB the page's own SHA-256 does what WebCrypto would do in memory."""
    path = tmp_path / "large.bin"
    size = (64 << 20) + 64 + extra
    with path.open("wb") as stream:
        stream.truncate(size - 3)
        stream.seek(0, 2)
        stream.write(b"end")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    browser.show(page(made(events=run_events([File("large.bin", size, digest)]))))
    assert browser.choose(path).startswith("result good: All 1 certified files")
    with path.open("r+b") as stream:
        stream.seek(40 << 20)
        stream.write(b"x")
    assert browser.choose(path).startswith("result bad: REFUSED")


def test_a_refused_page_compares_nothing(browser: Browser, model: Path) -> None:
    browser.show(put(page(made()), edit(other_file)))
    assert "is not whole" in browser.choose(model / "model.safetensors")


# -- nothing gets in, nothing gets out -------------------------------------------------------------


def test_hostile_texts_stay_texts(browser: Browser) -> None:
    certificate = hostile()
    browser.log("browser")
    assert browser.show(page(certificate)).startswith("result good")
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('img, iframe, a, link').length") == 0
    assert HOSTILE in browser.driver.find_element(By.CSS_SELECTOR, ".about").text
    assert browser.log("browser") == []


def test_nothing_is_loaded(browser: Browser) -> None:
    browser.log("performance")
    browser.show(page(made()))
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert len(asked) == 1  # the page itself
    assert asked[0].startswith("file://")


@pytest.mark.parametrize(
    "attack",
    [
        "<script>document.title = 'run'</script>",
        "<img src=x onerror=\"document.title = 'run'\">",
        "<script src='https://evil.example/x.js'></script>",
        "<style>h1 { display: none }</style>",
        "<iframe src='data:text/html,x'></iframe>",
    ],
)
def test_what_was_slipped_into_the_body_is_stopped_by_the_policy(
    browser: Browser, attack: str
) -> None:
    browser.log("browser")
    browser.show(page(made()).replace("<footer>", f"{attack}<footer>"))
    assert browser.driver.title != "run"
    assert browser.driver.find_element(By.TAG_NAME, "h1").is_displayed()
    assert "Content Security Policy" in json.dumps(browser.log("browser"))


def test_the_programs_own_page_names_every_source_by_digest() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page(made()))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?:", page(made()).replace("http://www.w3.org/2000/svg", ""))


# -- for people ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 390, 1000])
@pytest.mark.parametrize("certificate", [made(), hostile()])
def test_nothing_runs_off_the_side(browser: Browser, certificate: Certificate, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.show(page(certificate))
        assert browser.run("return document.documentElement.scrollWidth") <= width
        cells = "[...document.querySelectorAll('td, dd')]"
        narrowest = browser.run(f"return Math.min(...{cells}.map((cell) => cell.offsetWidth))")
        assert narrowest >= 30  # a size, and not a column of letters
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("worth", "says"),
    [("simulated", "only a software TPM vouches"), ("hardware", "a hardware TPM vouches")],
)
def test_the_page_says_how_much_it_is_worth(tmp_path: Path, worth: str, says: str) -> None:
    certificate = made()
    verdict = verified(certificate, tmp_path, worth)
    text = page(certificate, verdict)
    assert says in text
    assert f'<li class="here"><strong>{worth}</strong>' in text
    assert all(limit.replace("'", "&#x27;") in text for limit in verdict.not_proved)
    assert "forger root" in text
    unverified = page(certificate)
    assert "Not verified yet" in unverified
    assert 'class="here"' not in unverified


@pytest.mark.parametrize("worth", [None, "simulated", "hardware"])
def test_the_first_sheet_of_paper_holds_the_card(
    browser: Browser, tmp_path: Path, worth: str | None
) -> None:
    certificate = made()
    verdict = verified(certificate, tmp_path, worth) if worth else None
    browser.show(page(certificate, verdict))
    printed = browser.driver.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    counts = re.findall(rb"/Count (\d+)", base64.b64decode(printed["data"]))
    assert counts == [b"2"]  # the card, and its details


def test_many_inputs_and_files_are_counted(browser: Browser) -> None:
    files = [File(f"shard-{number:04}.bin", 1, "77" * 32) for number in range(500)]
    text = page(made(events=run_events(files)))
    assert "… and 300 more" in text
    assert browser.show(text).startswith("result good")
