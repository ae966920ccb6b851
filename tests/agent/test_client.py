"""What answers before it is attested may be anybody: its answers are bounded."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aicert.agent import client as module
from aicert.agent.client import AgentClient, AgentError, AnswerError

HEAD = b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\n"


@contextmanager
def answering(path: Path, head: bytes, body: Iterator[bytes]) -> Iterator[AgentClient]:
    """Yield a client of a server that answers one request with these bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as peer, suppress(OSError):
                peer.recv(65536)
                peer.sendall(head + b"Connection: close\r\n\r\n")
                for part in body:
                    peer.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with AgentClient(path) as client:
                yield client
        finally:
            thread.join(20)
        assert not thread.is_alive()


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_is_refused(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1 << 20)
    with answering(short_tmp / "s", HEAD % status, endless()) as client:
        with pytest.raises(AnswerError, match="does not end"):
            client.health()


@pytest.mark.parametrize("body", [b"[" * 200_000, b"[]", b"1"])
def test_an_answer_that_is_no_object_is_refused(short_tmp: Path, body: bytes) -> None:
    with answering(short_tmp / "s", HEAD % 200, iter([body])) as client:
        with pytest.raises(AnswerError, match="not an object"):
            client.health()


def test_an_error_that_is_none_is_told_by_its_status(short_tmp: Path) -> None:
    with answering(short_tmp / "s", HEAD % 409, iter([b'{"error": "text"}'])) as client:
        with pytest.raises(AgentError, match="HTTP 409"):
            client.health()
