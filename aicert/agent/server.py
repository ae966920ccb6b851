"""The agent's HTTP API: narrow, bounded, over a Unix socket or attested TLS (`channel`).

Every route answers JSON; a step streams newline-delimited JSON until it ends. The caller is not
trusted: bodies are bounded and strictly parsed, and nothing here can extend a PCR of the caller's
choice, read a file outside the run, or run a command other than the measured one.
"""

import base64
import hmac
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aicert import canonical
from aicert.agent.asked import RequestError
from aicert.agent.channel import (
    NONCE_BYTES,
    ChannelKey,
    ClaimedError,
    TokenError,
    owner_token,
)
from aicert.agent.service import Service, Step, UnknownRunError
from aicert.certificate import MAX_CHAIN, MAX_X509_BYTES
from aicert.errors import Error
from aicert.reader import Reader

MAX_BODY = 4 << 20
OWNER_HEADER = "x-aicert-token"
"""The header by which the owner of a remote agent shows who it is."""


def application(
    service: Service, *, remote: bool = False, owned_by: str | None = None
) -> Starlette:
    """Return the ASGI application that serves `service`.

    A `remote` one anybody can reach: it attests to whoever asks, belongs to the one who has the
    token `owned_by` or else to the first who claims it, and does nothing for others.
    """
    owner: list[str] = [] if owned_by is None else [owned_by]

    def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        async def owned(request: Request) -> Response:
            shown = request.headers.get(OWNER_HEADER, "")
            if remote and not (owner and hmac.compare_digest(owner[0].encode(), shown.encode())):
                raise TokenError(
                    "the agent does not belong to this caller",
                    advice="claim it first (POST /v1/claim); it belongs to the first who does",
                )
            return await endpoint(request)

        return Route(f"/v1{path}", owned, methods=[method])

    async def attest(request: Request) -> Response:
        body = await _body(request)
        nonce = body.octets("nonce", NONCE_BYTES)
        body.done()
        return JSONResponse((await run_in_threadpool(service.attest, nonce)).to_json())

    async def claim(request: Request) -> Response:
        body = await _body(request)
        token = body.octets("token", 32).hex()
        body.done()
        if owner and not hmac.compare_digest(owner[0], token):
            raise ClaimedError(
                "the agent belongs to another caller",
                advice="somebody reached this machine before you: use another one",
            )
        owner[:] = [token]
        return Response(status_code=204)

    async def receive(request: Request) -> Response:
        name = request.path_params["path"]
        try:
            with service.receive(name).open("wb") as target:
                async for chunk in request.stream():
                    await run_in_threadpool(target.write, chunk)
        except OSError as error:  # a folder is there, or the disk is full
            raise RequestError(
                "the file cannot be kept", got=f"{name[:200]}: {error.strerror}"
            ) from error
        return Response(status_code=204)

    async def health(request: Request) -> Response:
        del request
        return JSONResponse(service.health())

    async def identity(request: Request) -> Response:
        del request
        return JSONResponse((await run_in_threadpool(service.identity)).to_json())

    async def activate(request: Request) -> Response:
        body = await _body(request)
        blob = body.octets64("credentialBlob", max_bytes=1024)
        secret = body.octets64("encryptedSecret", max_bytes=1024)
        body.done()
        answer = await run_in_threadpool(service.activate, blob, secret)
        return JSONResponse({"secret": base64.b64encode(answer).decode("ascii")})

    async def ak_certificate(request: Request) -> Response:
        body = await _body(request)
        chain = body.octets64_list("chain", max_items=MAX_CHAIN, max_bytes=MAX_X509_BYTES)
        body.done()
        service.set_chain(chain)
        return Response(status_code=204)

    async def step(request: Request) -> Response:
        path = request.path_params
        content = await _content(request)
        running = await run_in_threadpool(service.start, path["run"], path["step"], content)
        return StreamingResponse(_lines(running), media_type="application/x-ndjson")

    async def certificate(request: Request) -> Response:
        data = service.certificate(request.path_params["run"])
        return Response(data, media_type="application/json")

    async def file(request: Request) -> Response:
        path = request.path_params
        found = await run_in_threadpool(service.open_file, path["run"], path["kind"], path["path"])
        if isinstance(found, Path):
            return FileResponse(found, media_type="application/octet-stream")
        return Response(found, media_type="application/json")

    async def cancel(request: Request) -> Response:
        service.cancel(request.path_params["run"])
        return Response(status_code=202)

    channel = [
        Route("/v1/attest", attest, methods=["POST"]),
        Route("/v1/claim", claim, methods=["POST"]),
        route("/files/{path:path}", "PUT", receive),
    ]
    return Starlette(
        routes=[
            *(channel if remote else []),
            route("/health", "GET", health),
            route("/identity", "GET", identity),
            route("/activate", "POST", activate),
            route("/ak-certificate", "PUT", ak_certificate),
            route("/runs/{run}/steps/{step}", "POST", step),
            route("/runs/{run}/certificate", "GET", certificate),
            route("/runs/{run}/files/{kind}/{path:path}", "GET", file),
            route("/runs/{run}", "DELETE", cancel),
        ],
        exception_handlers={Error: _refuse},
    )


def listen(path: Path) -> socket.socket:
    """Return a listening Unix socket that only this user may open."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(previous)
    listener.listen(16)
    return listener


def listen_tcp(address: str) -> socket.socket:
    """Return a socket that listens on an IPv4 address and port (`0.0.0.0:8443`)."""
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)), backlog=16)


def serve(service: Service, listener: socket.socket, channel: ChannelKey | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then stop the run and return.

    With a `channel`, over TLS with its key, to whoever the machine was made for; where that is not
    known, to whoever claims the agent first.
    """
    owner = None
    if channel is not None and service.secret is not None:
        owner = owner_token(service.secret, channel.spki)
    config = uvicorn.Config(
        application(service, remote=channel is not None, owned_by=owner),
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    if channel is not None:
        config.ssl = channel.context()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        service.close()


async def _refuse(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Error)
    status = 404 if isinstance(error, UnknownRunError) else 409
    return JSONResponse({"error": error.to_json()}, status_code=status)


async def _content(request: Request) -> Any:
    """Read a bounded body, whatever length it declares."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise RequestError("the body is too large", expected=f"at most {MAX_BODY} bytes")
    return canonical.loads(bytes(data) or b"{}", max_bytes=MAX_BODY)


async def _body(request: Request) -> Reader:
    return Reader(await _content(request), "body", RequestError)


def _lines(step: Step) -> Iterator[bytes]:
    for message in step.follow():
        yield json.dumps(message, separators=(",", ":")).encode() + b"\n"
