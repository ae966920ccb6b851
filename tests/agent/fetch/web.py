"""A web server on loopback that can be told to misbehave, and remembers what it was asked."""

import gzip
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

Fault = Callable[["Handler"], bool]
"""Called before a request is answered; True when it has answered itself."""


@dataclass
class Page:
    """What stands at a path."""

    data: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    sized: bool = True
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None


@dataclass
class Asked:
    """One request that came."""

    path: str
    headers: dict[str, str]
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    """Answers GET from the server's pages."""

    protocol_version = "HTTP/1.1"
    server: "Web"
    asked: Asked
    page: Page

    def do_GET(self) -> None:
        """Answer, unless the next fault does."""
        self.asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.server.asked.append(self.asked)
        pages = self.server.pages
        page = pages.get(self.path.partition("?")[0], pages.get("*"))
        if page is None:
            self.status(404)
            return
        self.page = page
        if page.faults and page.faults.pop(0)(self):
            return
        if page.always is None or not page.always(self):
            self.answer()

    def answer(self, *, stop_at: int | None = None) -> None:
        """Answer as a good server does, but break the connection after `stop_at` bytes."""
        data, page = self.page.data, self.page
        first, last = 0, len(data) - 1
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.asked.headers.get("range", ""))
        condition = self.asked.headers.get("if-match")
        if condition is not None and condition != page.headers.get("ETag"):
            self.status(412)
            return
        if match and page.ranges:
            first, last = int(match[1]), min(int(match[2] or last), last)
            if first > last:
                self.status(416, {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(206 if match and page.ranges else 200)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if match and page.ranges:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        if page.sized:
            self.send_header("Content-Length", str(last - first + 1))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        body = memoryview(data)[first : last + 1]
        if stop_at is not None:
            body = body[:stop_at]
            self.close_connection = True
        self.asked.sent = len(body)
        self.wfile.write(body)

    def status(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Answer with a status alone."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


class Web(ThreadingHTTPServer):
    """The server; `pages` may be changed at any time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen on a free port of loopback."""
        super().__init__(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Web":
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away."""


def cut(after: int) -> Fault:
    """Break the connection after so many bytes of the body."""

    def fault(handler: Handler) -> bool:
        handler.answer(stop_at=after)
        return True

    return fault


def refuse(status: int, **headers: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler) -> bool:
        handler.status(status, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def hang_up(handler: Handler) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()
    return True


def change(data: bytes, etag: str) -> Fault:
    """Replace the page before answering."""

    def fault(handler: Handler) -> bool:
        handler.page.data = data
        handler.page.headers = {"ETag": etag}
        return False

    return fault


def squeeze(handler: Handler) -> bool:
    """Send the page compressed, though nobody asked for it."""
    body = gzip.compress(handler.page.data)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


def good(handler: Handler) -> bool:
    """Answer as usual: a place in a list of faults."""
    del handler
    return False
