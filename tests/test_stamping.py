"""`aicert timestamp` against an authority on loopback: `openssl ts` behind a real HTTP server."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aicert import events, stamping, timestamp
from aicert.certificate import MAX_TIMESTAMP_BYTES, Certificate
from aicert.cli import main
from aicert.errors import Error
from tests.support.forger import Forger, run_events
from tests.support.tsa import OPENSSL, Tsa

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the program openssl is not installed")

Behaviour = Callable[[BaseHTTPRequestHandler, bytes], None]
REPLY = "application/timestamp-reply"


class Server(ThreadingHTTPServer):
    """An authority that answers as `behaviour` says, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, tsa: Tsa) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tsa = tsa
        self.behaviour: Behaviour = lambda handler, query: send(handler, tsa.answer(query))
        self.asked: list[tuple[str, str, bytes]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tsr"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"], query))
        with suppress(ConnectionError):
            self.server.behaviour(self, query)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, "GET", b""))
        self.send_error(400)

    def log_message(self, *_: Any) -> None:
        pass


def send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    kind: str = REPLY,
    length: int | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def tsa(tmp_path: Path) -> Tsa:
    return Tsa(tmp_path / "tsa")


@pytest.fixture
def server(tsa: Tsa) -> Iterator[Server]:
    with Server(tsa) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.ended.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def data() -> bytes:
    return Forger().certificate().encode()


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "certificate.json"
    path.write_bytes(data)
    return path


def stamp(server: Server, data: bytes, *, timeout: float = 20, replace: bool = False) -> bytes:
    roots = [server.tsa.root]
    return stamping.stamp(data, url=server.url, authorities=roots, timeout=timeout, replace=replace)


def command(server: Server, file: Path, *options: str, url: str | None = None) -> Result:
    root = str(server.tsa.root_file)
    arguments = ["timestamp", str(file), "--url", url or server.url, "--timestamp-root", root]
    return CliRunner().invoke(main, [*arguments, *options])


# -- what is sent, and what comes of it ------------------------------------------------------------


def test_a_stamped_certificate_is_the_same_one_with_a_timestamp(
    server: Server, data: bytes
) -> None:
    before, after = Certificate.parse(data), Certificate.parse(stamp(server, data))
    assert after.timestamp is not None
    assert replace(after, timestamp=None) == before
    checked = timestamp.read(after.encode(), [server.tsa.root])
    assert checked.authority == "CN=tests signer"


def test_only_a_digest_is_sent(server: Server, data: bytes) -> None:
    stamp(server, data)
    ((path, kind, query),) = server.asked
    assert (path, kind) == ("/tsr", "application/timestamp-query")
    assert hashlib.sha256(timestamp.message(Certificate.parse(data))).digest() in query
    assert len(query) < 120


def test_each_request_has_a_nonce_of_its_own(server: Server, data: bytes) -> None:
    for _ in range(2):
        stamp(server, data)
    assert server.asked[0][2] != server.asked[1][2]


def test_a_certificate_that_is_stamped_is_kept_unless_told_otherwise(
    server: Server, data: bytes
) -> None:
    once = stamp(server, data)
    with pytest.raises(stamping.PresentError, match="already"):
        stamp(server, once)
    assert len(server.asked) == 1
    twice = stamp(server, once, replace=True)
    assert Certificate.parse(twice).timestamp != Certificate.parse(once).timestamp


def test_what_is_no_certificate_is_sent_to_nobody(server: Server) -> None:
    with pytest.raises(Error):
        stamp(server, b"{}")
    assert server.asked == []


def test_without_a_root_nobody_is_asked(server: Server, data: bytes) -> None:
    with pytest.raises(timestamp.TimestampAuthorityError):
        stamping.stamp(data, url=server.url, authorities=[])
    assert server.asked == []


# -- authorities that do not do as they should -----------------------------------------------------


def hang(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    handler.server.ended.wait(30)  # type: ignore[attr-defined]


def trickle(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", REPLY)
    handler.end_headers()
    while not handler.server.ended.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b"0")


def endless(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", REPLY)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(bytes(1 << 16))


UNUSABLE: dict[str, Behaviour] = {
    "redirect": lambda h, _: send(h, b"", status=307, headers={"Location": "/other"}),
    "redirect-to-a-file": lambda h, _: send(
        h, b"", status=302, headers={"Location": "file:///etc/passwd"}
    ),
    "error": lambda h, _: send(h, b"no", status=500),
    "denied": lambda h, _: send(h, b"no", status=401),
    "no-content": lambda h, _: send(h, b"", status=204),
    "a-page": lambda h, _: send(h, b"<html>", kind="text/html"),
    "too-large": lambda h, _: send(h, bytes(MAX_TIMESTAMP_BYTES + 1)),
    "endless": endless,
    "cut": lambda h, _: send(h, b"\x30\x03", length=500, headers={"Connection": "close"}),
    "no-http": lambda h, _: (h.wfile.write(b"\x15\x03\x01\r\n\r\n"), None)[1],
    "nothing": lambda h, _: setattr(h, "close_connection", True),
    "many-headers": lambda h, _: send(h, b"", headers={f"X-{n}": "x" for n in range(200)}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_answer_that_cannot_be_used_is_refused(name: str, server: Server, data: bytes) -> None:
    def behaviour(handler: BaseHTTPRequestHandler, query: bytes) -> None:
        UNUSABLE[name](handler, query)
        handler.close_connection = True

    server.behaviour = behaviour
    with pytest.raises(stamping.UnavailableError) as caught:
        stamp(server, data)
    assert caught.value.code == "timestamp.unavailable"
    assert caught.value.got
    assert [path for path, _, _ in server.asked] == ["/tsr"]  # a redirection is not followed


@pytest.mark.parametrize("behaviour", [hang, trickle])
def test_a_slow_authority_is_given_up_in_time(
    behaviour: Behaviour, server: Server, data: bytes
) -> None:
    server.behaviour = behaviour
    start = time.monotonic()
    with pytest.raises(stamping.UnavailableError, match="no answer that can be used"):
        stamp(server, data, timeout=0.5)
    assert time.monotonic() - start < 20  # the server would take for ever


def test_where_nobody_listens_that_is_said(data: bytes, tsa: Tsa) -> None:
    with Server(tsa) as closed:
        url = closed.url
    with pytest.raises(stamping.UnavailableError) as caught:
        stamping.stamp(data, url=url, authorities=[tsa.root])
    assert "refused" in str(caught.value.got)


def test_a_customers_key_in_the_address_is_not_shown(server: Server, data: bytes) -> None:
    server.behaviour = UNUSABLE["error"]
    with pytest.raises(stamping.UnavailableError) as caught:
        stamping.ask(f"{server.url}/secret?key=secret", b"")
    assert "secret" not in caught.value.diagnostics()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://authority.example/",
        "file:///etc/passwd",
        "authority.example/tsr",
        "http://",
        "http://authority.example:port/",
        "http://authority.example/a b",
        "http://authority.example/\r\nX: y",
        "http://äuthority.example/",
        "http://name:password@authority.example/",
        "http://authority.example/#part",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(stamping.UrlError) as caught:
        stamping.ask(url, b"")
    assert caught.value.code == "timestamp.url"
    assert "password@" not in caught.value.diagnostics()


# -- answers that are no timestamp of this certificate ---------------------------------------------


def test_an_answer_to_another_request_is_refused(server: Server, data: bytes) -> None:
    stamp(server, data)
    earlier = server.tsa.answer(server.asked[0][2])
    server.behaviour = lambda handler, _: send(handler, earlier)
    with pytest.raises(timestamp.TimestampError, match="another request"):
        stamp(server, data)


def test_an_answer_by_another_authority_is_refused(
    server: Server, data: bytes, tmp_path: Path
) -> None:
    other = Tsa(tmp_path / "other", name="other")
    server.behaviour = lambda handler, query: send(handler, other.answer(query))
    with pytest.raises(timestamp.TimestampAuthorityError):
        stamp(server, data)


def test_an_authority_that_refuses_is_named(server: Server, data: bytes) -> None:
    refusal = server.tsa.answer(b"\x30\x03\x02\x01\x01")
    server.behaviour = lambda handler, _: send(handler, refusal)
    with pytest.raises(timestamp.TimestampError, match="gave no timestamp"):
        stamp(server, data)


@pytest.mark.parametrize("body", [b"", b"\x30\x00", b"<html>", bytes(1000)])
def test_garbage_is_refused(body: bytes, server: Server, data: bytes) -> None:
    server.behaviour = lambda handler, _: send(handler, body)
    with pytest.raises(timestamp.TimestampError):
        stamp(server, data)


def test_a_run_of_the_future_is_not_stamped(server: Server) -> None:
    """A verifier would refuse it ever after."""
    made = [
        replace(event, finished_on=event.finished_on + timedelta(days=36500))
        if isinstance(event, events.Outputs)
        else event
        for event in run_events()
    ]
    with pytest.raises(timestamp.TimestampContradictionError):
        stamp(server, Forger(events=made).certificate().encode())


def test_a_run_at_the_beginning_of_time_breaks_nothing(server: Server) -> None:
    begin = datetime.min.replace(tzinfo=UTC)
    made = [
        replace(event, started_on=begin)
        if isinstance(event, events.Job)
        else replace(event, finished_on=begin)
        if isinstance(event, events.Outputs)
        else event
        for event in run_events()
    ]
    assert stamp(server, Forger(events=made).certificate().encode())


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_a_new_file_and_names_both(
    server: Server, file: Path, tmp_path: Path
) -> None:
    before, out = file.read_bytes(), tmp_path / "stamped.json"
    done = command(server, file, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("STAMPED  existed before 2")
    for path in (file, out):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in done.stdout
    assert file.read_bytes() == before
    assert timestamp.read(out.read_bytes(), [server.tsa.root])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "certificate.json", "stamped.json", "tsa",
    ]  # fmt: skip


def test_json_says_the_same(server: Server, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "stamped.json"
    done = command(server, file, "--out", str(out), "--json")
    value = json.loads(done.stdout)
    assert value["certificate"] == {
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "before": hashlib.sha256(file.read_bytes()).hexdigest(),
        "path": str(out),
    }
    assert value["timestampAuthority"] == "CN=tests signer"
    stamped = timestamp.read(out.read_bytes(), [server.tsa.root])
    assert value["existedBefore"] == events.format_time(stamped.latest)


def test_a_file_that_is_there_is_never_written_over(
    server: Server, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stamped.json"
    out.write_text("mine")
    done = command(server, file, "--out", str(out))
    assert done.exit_code == 3
    assert "File exists" in done.stderr
    assert out.read_text() == "mine"


def test_in_place_keeps_mode_and_follows_a_link(server: Server, file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    done = command(server, link, "--in-place")
    assert done.exit_code == 0, done.output
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert timestamp.read(file.read_bytes(), [server.tsa.root])


@pytest.mark.parametrize("failure", ["answer", "disk"])
def test_in_place_all_or_nothing(
    failure: str, server: Server, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    if failure == "answer":
        server.behaviour = UNUSABLE["error"]
    else:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
    done = command(server, file, "--in-place")
    assert done.exit_code == 3
    assert done.stderr.startswith("ERROR")
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["certificate.json", "tsa"]


def test_a_published_certificate_is_not_changed_where_it_is(
    server: Server, data: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "certificates" / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True)
    file = folder / "certificate.json"
    file.write_bytes(data)
    done = command(server, file, "--in-place")
    assert done.exit_code == 3
    assert "cli.published" in done.stderr
    assert server.asked == []
    assert file.read_bytes() == data
    assert command(server, file, "--out", str(tmp_path / "stamped.json")).exit_code == 0


@pytest.mark.parametrize(
    ("options", "status"),
    [((), 2), (("--out", "x", "--in-place"), 2), (("--in-place", "--timeout", "0"), 2)],
)
def test_wrong_usage(options: tuple[str, ...], status: int, server: Server, file: Path) -> None:
    assert command(server, file, *options).exit_code == status
    assert server.asked == []


def test_exit_statuses_tell_refused_from_could_not_check(
    server: Server, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out.json")
    assert command(server, file, "--out", out, url="ftp://x").exit_code == 3
    assert command(server, tmp_path / "none.json", "--out", out).exit_code == 3
    assert command(server, file, "--out", str(tmp_path / "none" / "out.json")).exit_code == 3
    file.write_bytes(stamp(server, file.read_bytes()))
    done = command(server, file, "--out", out, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "timestamp.present"
    monkeypatch.setitem(__import__("sys").modules, "rfc3161_client", None)
    done = command(server, file, "--out", out, "--replace")
    assert done.exit_code == 3
    assert "'.[timestamp]'" in done.stderr
    assert not Path(out).exists()
