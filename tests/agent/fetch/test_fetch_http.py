"""Promises about fetching over HTTP, kept against a real server that misbehaves."""

import hashlib
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aicert.agent.fetch import InputRequest, Retry, errors, resolve, transfer
from tests.agent.fetch.conftest import QUICK, Bring, content, noise
from tests.agent.fetch.web import Handler, Page, Web, change, cut, good, hang_up, refuse, squeeze

pytestmark = pytest.mark.usefixtures("small_blocks")

DATA = noise(1_000_003)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def page(web: Web) -> Page:
    page = Page(DATA)
    web.pages["/data.bin"] = page
    return page


def test_a_file_comes_whole_hashed_and_read_only(web: Web, page: Page, bring: Bring) -> None:
    got = bring(f"{web.url}/data.bin")
    assert content(got.path) == {"data.bin": DATA}
    assert got.sha256 == SHA256
    assert [(f.path, f.size, f.sha256) for f in got.manifest.files] == [
        ("data.bin", len(DATA), SHA256)
    ]
    assert stat.S_IMODE((got.path / "data.bin").stat().st_mode) == 0o444
    assert stat.S_IMODE(got.path.stat().st_mode) == 0o555


def test_the_entity_tag_is_recorded_and_asked_for_with_each_range(
    web: Web, page: Page, bring: Bring
) -> None:
    got = bring(f"{web.url}/data.bin")
    assert got.resolved.revision == '"one"'
    assert got.resolved.uri == f"{web.url}/data.bin"
    ranges = web.asked[1:]
    assert len(ranges) == 16
    assert all(asked.headers["if-match"] == '"one"' for asked in ranges)
    assert all(asked.headers["accept-encoding"] == "identity" for asked in web.asked)


def test_an_expected_digest_that_fits_is_accepted(web: Web, page: Page, bring: Bring) -> None:
    assert bring(f"{web.url}/data.bin", sha256=SHA256.upper()).sha256 == SHA256


def test_a_digest_that_does_not_fit_stops_and_leaves_nothing(
    web: Web, page: Page, bring: Bring, tmp_path: Path
) -> None:
    with pytest.raises(errors.DigestMismatchError) as caught:
        bring(f"{web.url}/data.bin", sha256="0" * 64)
    assert caught.value.got == SHA256
    assert caught.value.expected == "0" * 64
    assert "data.bin" in caught.value.message and "input it" in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 1, 20_000])
def test_a_connection_that_is_cut_goes_on_where_it_was_cut(
    web: Web, page: Page, bring: Bring, after: int
) -> None:
    page.faults = [good, good, cut(after), cut(after)]
    assert bring(f"{web.url}/data.bin", jobs=1).sha256 == SHA256
    starts = [asked.headers["range"].partition("=")[2].partition("-")[0] for asked in web.asked]
    assert starts[2:5] == ["65536", str(65536 + after), str(65536 + 2 * after)]
    # The server sent each byte once, but for what was lost in flight: nothing on loopback.
    assert sum(asked.sent for asked in web.asked[1:]) == len(DATA)


@pytest.mark.parametrize("fault", [refuse(429, Retry_After="0"), refuse(503), hang_up])
def test_a_transient_failure_is_tried_again(
    web: Web, page: Page, bring: Bring, fault: object
) -> None:
    page.faults = [fault, good, fault, fault]  # type: ignore[list-item]
    assert bring(f"{web.url}/data.bin").sha256 == SHA256


def test_retry_after_is_waited_for(web: Web, page: Page) -> None:
    page.faults = [refuse(429, Retry_After="17")]
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    from aicert.agent.fetch.http import Client

    client = Client(web.url, {})
    retry = Retry(attempts=2, first_wait=0.01, stop=Stop())
    found = retry(lambda: client.probe(f"{web.url}/data.bin"))
    assert found.size == len(DATA)
    assert waits == [17]


def test_trying_again_ends(web: Web, page: Page, bring: Bring) -> None:
    page.faults = [refuse(503)] * 50
    with pytest.raises(errors.NetworkError) as caught:
        bring(f"{web.url}/data.bin")
    assert caught.value.code == "fetch.network"
    assert len(web.asked) == QUICK.attempts


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, errors.DeniedError), (403, errors.DeniedError), (404, errors.NotFoundError)],
)
def test_a_refusal_is_not_tried_again(
    web: Web, page: Page, bring: Bring, status: int, error: type[Exception]
) -> None:
    page.faults = [refuse(status)] * 5
    with pytest.raises(error):
        bring(f"{web.url}/data.bin")
    assert len(web.asked) == 1


def test_a_file_that_changes_midway_is_refused_and_not_kept(
    web: Web, page: Page, bring: Bring, tmp_path: Path
) -> None:
    page.faults = [good, good, good, change(noise(len(DATA), 2), '"two"')]
    with pytest.raises(errors.ChangedError):
        bring(f"{web.url}/data.bin", jobs=1)
    assert not list(tmp_path.iterdir())


def test_a_change_is_seen_though_the_server_ignores_conditions(
    web: Web, page: Page, bring: Bring
) -> None:
    def swap(handler: object) -> bool:
        page.data, page.headers = noise(len(DATA), 2), {"ETag": '"two"'}
        web.asked[-1].headers.pop("if-match")
        return False

    page.faults = [good, good, swap]
    with pytest.raises(errors.ChangedError) as caught:
        bring(f"{web.url}/data.bin", jobs=1)
    assert (caught.value.got, caught.value.expected) == ('"two"', '"one"')


def test_a_change_of_size_is_seen_without_any_tag(web: Web, bring: Bring) -> None:
    # Last-Modified is a validator of one second; here only the size tells.
    headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    page = web.pages["/data.bin"] = Page(DATA, headers)

    def shrink(handler: object) -> bool:
        page.data = DATA[:-1]
        return False

    page.faults = [good, good, shrink]
    with pytest.raises(errors.ChangedError):
        bring(f"{web.url}/data.bin", jobs=1)


@pytest.mark.parametrize(
    "headers",
    [{}, {"ETag": 'W/"weak"'}, {"Last-Modified": "Fri, 01 Jan 2999 00:00:00 GMT"}],
)
def test_without_a_strong_validator_the_file_comes_in_one_piece(
    web: Web, bring: Bring, headers: dict[str, str]
) -> None:
    page = web.pages["/data.bin"] = Page(DATA, headers)
    page.faults = [good, cut(500_000)]
    assert bring(f"{web.url}/data.bin").sha256 == SHA256
    assert [asked.headers.get("range") for asked in web.asked] == ["bytes=0-0", None, None]


@pytest.mark.parametrize("sized", [True, False])
def test_a_server_without_ranges_will_do(web: Web, bring: Bring, sized: bool) -> None:
    web.pages["/data.bin"] = Page(DATA, ranges=False, sized=sized)
    events: list[dict[str, object]] = []
    assert bring(f"{web.url}/data.bin", on_event=events.append).sha256 == SHA256
    assert events[-1]["done"] == len(DATA)
    assert events[-1]["total"] == (len(DATA) if sized else None)


def test_a_server_that_promises_more_than_it_sends_is_refused(web: Web, bring: Bring) -> None:
    page = web.pages["/data.bin"] = Page(DATA, ranges=False)
    page.faults = [good, *[cut(1000)] * 10]
    with pytest.raises(errors.NetworkError):
        bring(f"{web.url}/data.bin")


def test_an_empty_file_is_a_file(web: Web, bring: Bring) -> None:
    web.pages["/empty"] = Page(b"")
    assert bring(f"{web.url}/empty").sha256 == hashlib.sha256(b"").hexdigest()


def test_content_that_is_compressed_on_the_way_is_refused(
    web: Web, page: Page, bring: Bring
) -> None:
    page.faults = [squeeze]
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(f"{web.url}/data.bin")
    assert "gzip" in (caught.value.got or "")


def test_archives_stay_packed(web: Web, bring: Bring) -> None:
    web.pages["/data.tar.gz"] = Page(b"\x1f\x8b not unpacked")
    assert content(bring(f"{web.url}/data.tar.gz").path) == {
        "data.tar.gz": b"\x1f\x8b not unpacked"
    }


def test_redirects_are_followed_and_the_request_is_what_is_recorded(
    web: Web, page: Page, bring: Bring
) -> None:
    web.pages["/latest"] = Page(b"", faults=[refuse(302, Location="/data.bin")])
    got = bring(f"{web.url}/latest")
    assert got.sha256 == SHA256
    assert got.resolved.uri == f"{web.url}/latest"


def test_a_redirect_that_has_expired_is_asked_for_again(web: Web, page: Page, bring: Bring) -> None:
    web.pages["/latest"] = Page(b"", faults=[refuse(302, Location="/data.bin")] * 2)
    page.faults = [good, good, refuse(403)]
    assert bring(f"{web.url}/latest", jobs=1).sha256 == SHA256


def drip(handler: Handler) -> bool:
    """Promise everything, and send a byte now and then."""
    handler.send_response(206 if "range" in handler.asked.headers else 200)
    handler.send_header("ETag", '"one"')
    size = len(handler.page.data)
    asked = handler.asked.headers.get("range", f"bytes=0-{size - 1}")
    first, _, last = asked.removeprefix("bytes=").partition("-")
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.send_header("Content-Length", str(int(last) - int(first) + 1))
    handler.end_headers()
    handler.wfile.write(b"x")
    if last != first:
        with suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.1)
    return True


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_for_ever(
    tls: Any, bring: Bring, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 1.0)
    with Web(tls(True) if secure else None) as web:
        web.pages["/data.bin"] = Page(noise(3 << 20), always=drip)
        start = time.monotonic()
        with pytest.raises(errors.NetworkError, match="next to nothing") as caught:
            bring(f"{web.url}/data.bin")
    # Its three million bytes would take it days.
    assert caught.value.advice and time.monotonic() - start < 120


def test_cancelling_does_not_wait_for_a_server_that_is_silent(web: Web, bring: Bring) -> None:
    web.pages["/data.bin"] = Page(noise(3 << 20), always=drip)
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    start = time.monotonic()
    with pytest.raises(errors.CancelledError):
        bring(f"{web.url}/data.bin", cancelled=cancelled)
    assert time.monotonic() - start < 120  # given up for silence it would be after 300 s


def test_redirects_in_a_circle_end(web: Web, bring: Bring) -> None:
    web.pages["/a"] = Page(b"", faults=[refuse(302, Location="/a")] * 50)
    with pytest.raises(errors.RedirectError):
        bring(f"{web.url}/a")
    assert len(web.asked) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_kind_of_place_is_refused(
    web: Web, bring: Bring, target: str
) -> None:
    web.pages["/a"] = Page(b"", faults=[refuse(302, Location=target)])
    with pytest.raises(errors.RedirectError):
        bring(f"{web.url}/a")


def test_https_works_and_does_not_fall_back_to_http(
    web: Web, page: Page, bring: Bring, tls: Callable[[bool], ssl.SSLContext]
) -> None:
    with Web(tls(True)) as safe:
        safe.pages["/data.bin"] = page
        safe.pages["/moved"] = Page(b"", faults=[refuse(302, Location=f"{web.url}/data.bin")])
        with pytest.raises(errors.RedirectError):
            bring(f"{safe.url}/moved")
        assert not web.asked
        assert bring(f"{safe.url}/data.bin", secrets={"token": "t0p-secret"}).sha256 == SHA256


def test_a_server_whose_certificate_nobody_vouches_for_is_not_asked(
    page: Page, bring: Bring, tls: Callable[[bool], ssl.SSLContext]
) -> None:
    with Web(tls(False)) as unknown:
        unknown.pages["/data.bin"] = page
        with pytest.raises(errors.NetworkError) as caught:
            bring(f"{unknown.url}/data.bin", secrets={"token": "t0p-secret"})
        assert "certificate" in (caught.value.advice or "")
        assert not isinstance(caught.value, errors.TransientError)
        assert not unknown.asked


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("https://huggingface.co/datasets/owner/set", "hf://"),
        ("https://github.com/owner/repo.git", "git+https"),
    ],
)
def test_the_address_of_a_page_is_not_taken_for_data(bring: Bring, uri: str, advice: str) -> None:
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(uri)
    assert advice in (caught.value.advice or "")


def test_the_token_goes_to_its_own_host_only(web: Web, page: Page, bring: Bring) -> None:
    with Web() as other:
        other.pages["/data.bin"] = page
        web.pages["/latest"] = Page(b"", faults=[refuse(302, Location=f"{other.url}/data.bin")])
        bring(
            f"{web.url}/latest", secrets={"token": "t0p-secret", "headers": {"X-Key": "k3y-secret"}}
        )
        assert web.asked[0].headers["authorization"] == "Bearer t0p-secret"
        assert web.asked[0].headers["x-key"] == "k3y-secret"
        assert other.asked
        assert not any({"authorization", "x-key"} & asked.headers.keys() for asked in other.asked)


def test_a_token_is_not_sent_in_the_clear(bring: Bring) -> None:
    with pytest.raises(errors.CredentialsError):
        bring("http://example.invalid/data.bin", secrets={"token": "t0p-secret"})


def test_a_header_that_changes_what_is_asked_for_is_refused(
    web: Web, page: Page, bring: Bring
) -> None:
    with pytest.raises(errors.UnresolvableError, match="headers"):
        bring(f"{web.url}/data.bin", secrets={"headers": {"HOST": "elsewhere.example"}})
    assert not web.asked


@pytest.mark.parametrize("token", ["t0p-secret\n", "t0p\u2028secret", "t0p-s\xe9cret"])
def test_a_token_with_a_line_end_is_refused_and_not_shown(
    web: Web, page: Page, bring: Bring, token: str
) -> None:
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(f"{web.url}/data.bin", secrets={"token": token})
    assert "t0p" not in caught.value.diagnostics()
    assert not web.asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Length", "\xb2"),
        ("Content-Length", "9" * 5000),
        ("Content-Range", "bytes 0-0/" + "9" * 5000),
        ("Content-Range", "bytes x-y/z"),
        ("Content-Range", "bytes 5-5/1000003"),
        ("ETag", '"' + "x" * 5000 + '"'),
        ("Last-Modified", "Mon, 01 Jan 0001 00:00:00 -2359"),
        ("Last-Modified", "x" * 5000),
        ("Retry-After", "9" * 5000),
        ("Retry-After", "Mon, 01 Jan 0001 00:00:00 -2359"),
        ("Location", "http://[bad"),
        ("Location", "//"),
        ("Location", ""),
    ],
)
@pytest.mark.parametrize("status", [200, 206, 302, 416, 429])
def test_a_hostile_header_is_an_error_of_ours_or_does_no_harm(
    web: Web, bring: Bring, name: str, value: str, status: int
) -> None:

    def answer(handler: Handler) -> bool:
        handler.close_connection = True
        return refuse(status, **{name.replace("-", "_"): value})(handler)

    web.pages["/data.bin"] = Page(b"", always=answer)
    retry = Retry(attempts=2, first_wait=0.01, longest_wait=0.01)
    try:
        bring(f"{web.url}/data.bin", retry=retry)
    except errors.FetchError as error:
        assert len(error.diagnostics()) < 2000


def test_an_input_over_its_limit_is_not_begun(
    web: Web, page: Page, bring: Bring, tmp_path: Path
) -> None:
    with pytest.raises(errors.TooLargeError):
        bring(f"{web.url}/data.bin", max_bytes=len(DATA) - 1)
    assert len(web.asked) == 1


def test_an_input_of_unknown_size_stops_at_the_limit(web: Web, bring: Bring) -> None:
    web.pages["/data.bin"] = Page(DATA, ranges=False, sized=False)
    with pytest.raises(errors.TooLargeError):
        bring(f"{web.url}/data.bin", max_bytes=100_000)


def test_an_input_that_does_not_fit_on_the_disk_is_not_begun(
    web: Web, page: Page, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(len(DATA)))
    with pytest.raises(errors.NoSpaceError):
        bring(f"{web.url}/data.bin")
    assert len(web.asked) == 1


def test_a_url_without_a_name_takes_the_name_of_the_input(web: Web, bring: Bring) -> None:
    web.pages["/"] = Page(b"x")
    assert content(bring(f"{web.url}/").path) == {"it": b"x"}


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2fb", "a%5cb", "a%00b", "C:x", "a%0ab"])
def test_a_name_that_leads_elsewhere_is_refused(
    web: Web, bring: Bring, name: str, tmp_path: Path
) -> None:
    web.pages["*"] = Page(b"x")
    with pytest.raises(errors.PathError):
        bring(f"{web.url}/{name}")
    assert not (tmp_path / "into").exists()


def test_a_host_that_does_not_exist_is_looked_up_once(
    bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unknown(host: str, *arguments: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.NetworkError) as caught:
        bring("http://nothing.invalid/x")
    assert "host" in (caught.value.advice or "")
    assert asked == ["nothing.invalid"]


def test_a_revision_is_refused_as_http_has_none(web: Web, page: Page, bring: Bring) -> None:
    with pytest.raises(errors.UnresolvableError):
        bring(f"{web.url}/data.bin", revision="v1")


def test_resolving_costs_one_byte(web: Web, page: Page, tmp_path: Path) -> None:
    got = resolve(InputRequest("it", f"{web.url}/data.bin"), base=tmp_path)
    assert (got.kind, got.revision, got.files[0].size) == ("file", '"one"', len(DATA))
    assert sum(asked.sent for asked in web.asked) == 1
