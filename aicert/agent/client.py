"""The caller's side of the agent's API: what tasks use."""

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from aicert import tpm2
from aicert.agent.ca import Identity
from aicert.agent.channel import NONCE_BYTES, Attestation, Remote
from aicert.errors import Error

CONNECT_SECONDS = 30.0
"""How long a connection and its handshake may take: an emulated machine on a busy host is slow."""

SILENCE_SECONDS = 60.0
"""How long a step may say nothing, not even a ping, before the agent counts as lost."""

MAX_ANSWER_BYTES = 32 << 20
"""The longest answer that is read at once: a certificate has half of that at most."""


class AgentError(Error):
    """The agent refused, or a step failed; `code` is the agent's own.

    `final` says that the run cannot go on and a new one is needed.
    """

    code = "agent.error"

    def __init__(self, fields: dict[str, Any]) -> None:
        """Take the error as the agent sent it."""
        super().__init__(
            str(fields.get("message", "the agent gave no reason")),
            got=fields.get("got"),
            expected=fields.get("expected"),
            advice=fields.get("advice"),
        )
        self.code = str(fields.get("code", "agent.error"))  # type: ignore[misc]
        self.final = bool(fields.get("final", False))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the error crosses processes whole."""
        return (type(self), ({**self.to_json(), "final": self.final},))


class LostAgentError(Error):
    """The agent cannot be reached, or fell silent."""

    code = "agent.lost"


class AnswerError(Error):
    """What answers is not an agent: nothing of it is known yet, and its answer has no bounds."""

    code = "agent.answer"


class AgentClient:
    """A connection to one agent. Make one where it is used; it is cheap and not shared."""

    def __init__(self, place: Path | Remote) -> None:
        """Talk to the agent that listens on a Unix socket, or at the end of a channel."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        if isinstance(place, Remote):
            self._http = httpx.Client(
                base_url=f"https://{place.host}:{place.port}/v1",
                verify=place.context,
                # Nothing packed: what is small on the way must not be large here.
                headers={"x-aicert-token": place.token, "accept-encoding": "identity"},
                trust_env=False,  # no proxy in between
                timeout=timeout,
            )
        else:
            self._http = httpx.Client(
                transport=httpx.HTTPTransport(uds=str(place)),
                base_url="http://agent/v1",
                timeout=timeout,
            )

    def __enter__(self) -> "AgentClient":
        """Return the client."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Return the agent's version and where its run stands."""
        return self._json("GET", "/health")

    def identity(self) -> Identity:
        """Return what a CA needs to certify the agent's attestation key."""
        return Identity.from_json(self._json("GET", "/identity"))

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Have the TPM answer a challenge; return the secret."""
        body = {
            "credentialBlob": base64.b64encode(credential_blob).decode("ascii"),
            "encryptedSecret": base64.b64encode(encrypted_secret).decode("ascii"),
        }
        return base64.b64decode(self._json("POST", "/activate", body)["secret"], validate=True)

    def set_ak_certificate(self, chain: "list[bytes] | tuple[bytes, ...]") -> None:
        """Give the agent the chain that the CA issued (DER, leaf to root)."""
        body = {"chain": [base64.b64encode(der).decode("ascii") for der in chain]}
        self._json("PUT", "/ak-certificate", body)

    def claim(self, remote: Remote) -> None:
        """Make a remote agent one's own.

        Raises:
            AgentError: (`channel.claimed`) it belongs to another caller.
        """
        self._json("POST", "/claim", {"token": remote.token})

    def attest(self, remote: Remote, ak: tpm2.Public, secret: bytes | None = None) -> Attestation:
        """Have the machine's TPM say, for a fresh nonce, that this channel ends at its agent.

        Args:
            remote: the channel that this client uses.
            ak: the attestation key, which the caller knows to live in the machine's TPM.
            secret: what the machine was given when it was made, if it was.

        Returns:
            What was quoted, authenticated: the PCRs say what was booted.

        Raises:
            ChannelError: (a subclass) it ends elsewhere; send nothing.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        answer = Attestation.from_json(self._json("POST", "/attest", {"nonce": nonce.hex()}))
        answer.check(ak, nonce, remote.spki, secret)
        return answer

    def send(self, name: str, path: Path) -> None:
        """Send a file of this machine to a remote agent, as the spec's relative path `name`.

        Sent again, as after a connection that broke, it takes the place of what came before.
        """
        url = f"/files/{quote(name)}"
        with (
            path.open("rb") as file,
            self._lost(),
            self._http.stream("PUT", url, content=file) as response,
        ):
            self._check(response)

    def step(
        self,
        run: str,
        step: str,
        body: dict[str, Any] | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Do a step, or join it; return its record.

        `on_event` gets every log line and progress message, from the step's first.

        Raises:
            AgentError: the agent refused, or the step failed.
            LostAgentError: the connection broke; the step may still go on and can be joined again.
        """
        with (
            self._lost(),
            self._http.stream("POST", f"/runs/{run}/steps/{step}", json=body or {}) as response,
        ):
            self._check(response)
            for line in response.iter_lines():
                message = json.loads(line)
                if message["type"] == "record":
                    return dict(message["record"])
                if message["type"] == "error":
                    raise AgentError(message["error"])
                if message["type"] != "ping" and on_event is not None:
                    on_event(message)
        raise LostAgentError(f"the agent ended the step {step!r} without a word")

    def certificate(self, run: str) -> bytes:
        """Return the certificate of a finished run."""
        with self._lost(), self._http.stream("GET", f"/runs/{run}/certificate") as response:
            self._check(response)
            return self._read(response)

    def open_file(self, run: str, kind: str, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file of the run; kind is outputs, manifests, logs, signatures."""
        url = f"/runs/{run}/files/{kind}/{quote(path)}"
        with self._lost(), self._http.stream("GET", url) as response:
            self._check(response)
            yield from response.iter_bytes(1 << 20)

    def cancel(self, run: str) -> None:
        """Stop the run."""
        self._json("DELETE", f"/runs/{run}")

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        with self._lost(), self._http.stream(method, path, json=body) as response:
            self._check(response)
            data = self._read(response)
            try:
                value = json.loads(data or b"{}")
            except RecursionError:
                value = None
        if type(value) is not dict:
            raise AnswerError("the agent's answer is not an object", got=f"{method} {path}")
        return value

    @staticmethod
    def _read(response: httpx.Response) -> bytes:
        """Read an answer, whatever length it declares."""
        data = bytearray()
        for chunk in response.iter_raw(1 << 16):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise AnswerError(
                    "the agent's answer does not end",
                    expected=f"at most {MAX_ANSWER_BYTES} bytes",
                    advice="something else than an agent listens there: use another machine",
                )
        return bytes(data)

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, json.JSONDecodeError) as error:
            raise LostAgentError(
                "the agent cannot be reached",
                got=f"{type(error).__name__}: {error}",
                advice="see agent.log in the machine's folder; start a new run if it is gone",
            ) from error

    @classmethod
    def _check(cls, response: httpx.Response) -> None:
        if response.is_success:
            return
        try:
            fields = dict(json.loads(cls._read(response))["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            fields = {"code": "agent.http", "message": f"HTTP {response.status_code}"}
        raise AgentError(fields)
