"""A certificate from the web: over TLS alone, bounded, and the one that the address names."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from aicert import download
from aicert.certificate import MAX_BYTES
from aicert.cli import main
from tests.support import tls

HERE = Path(__file__).parent / "conformance"
GOOD = (HERE / "cases" / "good-ecc" / "certificate.json").read_bytes()
Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Pages over TLS on loopback."""

    def __init__(self, tls_files: tls.Loopback) -> None:
        self.pages: dict[str, Answer] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = web.pages.get(self.path.partition("?")[0])
                if page is None:
                    self.send_error(404)
                else:
                    page(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = tls_files.context().wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"


def page(data: bytes, length: int | None = None, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    files = tls.loopback(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
    server = Web(files)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_certificate_is_verified_from_its_address(web: Web) -> None:
    web.pages["/c.json"] = page(GOOD)
    roots = ("--root", str(HERE / "roots.pem"), "--allow-simulated")
    done = CliRunner().invoke(main, ["verify", f"{web.url}/c.json", *roots])
    assert done.exit_code == 0 and done.stdout.startswith("VERIFIED")
    shown = CliRunner().invoke(main, ["show", f"{web.url}/c.json"])
    assert shown.exit_code == 0 and "digits" in shown.stdout


def test_what_the_address_names_by_digest_must_come(web: Web) -> None:
    digest = hashlib.sha256(GOOD).hexdigest()
    web.pages[f"/certificates/{digest}/certificate.json"] = page(GOOD)
    assert download.certificate(f"{web.url}/certificates/{digest}/certificate.json") == GOOD
    path = f"/certificates/{'0' * 64}/certificate.json"
    web.pages[path] = page(GOOD)
    with pytest.raises(download.RenamedError):
        download.certificate(web.url + path)
    done = CliRunner().invoke(main, ["verify", web.url + path])
    assert done.exit_code == 1


def test_what_does_not_come_whole_is_an_error_and_not_a_refusal(web: Web) -> None:
    web.pages["/short"] = page(GOOD[:-1], len(GOOD))
    web.pages["/away"] = page(b"", status=503)
    for path in ("/short", "/away", "/none"):
        done = CliRunner().invoke(main, ["verify", web.url + path + "?sig=a-secret"])
        assert done.exit_code == 3
        assert path in done.stderr and "a-secret" not in done.stderr


def test_no_more_is_read_than_a_certificate_may_have(web: Web) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 20))
        except OSError:
            pass

    web.pages["/endless"] = endless
    assert len(download.certificate(f"{web.url}/endless")) == MAX_BYTES + 1


def test_an_answer_that_trickles_in_is_given_up(web: Web) -> None:
    gone = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not gone.wait(0.01):
                handler.wfile.write(b" ")
        except OSError:
            pass

    web.pages["/slow"] = slow
    try:
        with pytest.raises(download.DownloadError, match="cannot be had") as caught:
            download.certificate(f"{web.url}/slow", timeout=0.2)
        assert "not whole" in (caught.value.got or "")
    finally:
        gone.set()


def test_a_large_file_that_trickles_in_is_given_up(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends a byte now and then could keep a verifier waiting for years."""
    gone = threading.Event()
    asked: list[str | None] = []

    def slow(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Range"])
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while not gone.wait(0.01):
                handler.wfile.write(b" ")
        except OSError:
            pass

    web.pages["/model.bin"] = slow
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    monkeypatch.setattr(download, "_WAIT", 0.001)
    try:
        with pytest.raises(download.DownloadError, match="cannot be had") as caught:
            download.save(f"{web.url}/model.bin", tmp_path / "model.bin", size=1 << 40)
        assert "hardly anything" in (caught.value.got or "")
        assert asked[0] is None and (asked[1] or "").startswith("bytes=")
    finally:
        gone.set()


def test_a_redirection_is_followed_with_tls_alone(web: Web) -> None:
    web.pages["/c.json"] = page(GOOD)
    web.pages["/moved"] = page(b"", status=302, Location=f"{web.url}/c.json")
    web.pages["/open"] = page(b"", status=302, Location="http://127.0.0.1:1/c.json")
    web.pages["/file"] = page(b"", status=302, Location="file:///etc/hostname")
    assert download.certificate(f"{web.url}/moved") == GOOD
    for path in ("/open", "/file"):
        with pytest.raises(download.DownloadError):
            download.certificate(web.url + path)


def test_a_server_whose_certificate_nobody_trusts_is_refused(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.pages["/c.json"] = page(GOOD)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(download.DownloadError) as caught:
        download.certificate(f"{web.url}/c.json")
    assert "CERTIFICATE_VERIFY_FAILED" in (caught.value.got or "")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/c.json",
        "https://user:password@127.0.0.1/c.json",
        "https:///c.json",
        "https://127.0.0.1:port/c.json",
        "https://127.0.0.1/a b",
        "https://127.0.0.1/ü",
        "file:///etc/hostname",
    ],
)
def test_an_address_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(download.DownloadError) as caught:
        download.certificate(url)
    assert "password@" not in caught.value.diagnostics()
