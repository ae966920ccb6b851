"""A stand-in for the Hugging Face Hub: as much of its HTTP API as its own library uses.

Repositories with commits, uploads by the LFS protocol (in one part or several), small files in git,
downloads by way of a redirection to another host. Over TLS on loopback. It can lose answers, fail,
and hold what nobody pushed.
"""

import base64
import hashlib
import json
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 1000
"""From so many bytes on a file goes through LFS; the real Hub has 10 MB, and rules by name."""

Files = dict[str, bytes]


@dataclass
class Repository:
    """A model repository: commits from the first to the head, each with all its files."""

    private: bool
    commits: list[tuple[str, Files]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str = "") -> str:
        """Add a commit; return its name."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((name, files))
        self.messages.append(message)
        return name

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> Files:
        """The files of the head."""
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, Files] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """The Hub, at `url`, and its storage for large files on another port."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: Files = {}
        self.parts: dict[str, Files] = {}
        self.tokens = {"hf_mine"}
        self.part_size: int | None = None
        self.asked: list[tuple[str, str, str | None]] = []
        self.before: list[tuple[str, Callable[[], object]]] = []
        self.lost: list[str] = []
        self.failing: list[tuple[str, int]] = []
        self.cut: list[str] = []
        self.serve: Callable[[str, bytes], bytes] = lambda path, data: data
        self._servers = [_Server(self, context, large) for large in (False, True)]
        self.url, self.storage = (server.url for server in self._servers)

    def repository(
        self, name: str, files: Files | None = None, private: bool = False
    ) -> Repository:
        """Make a repository as the Hub does: with a first commit that holds its git settings."""
        made = self.repositories[name] = Repository(private)
        made.commit({".gitattributes": b"*.bin filter=lfs\n", **(files or {})})
        return made

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, context: ssl.SSLContext, large: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Storage if large else _Api)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.hub = hub
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say what went wrong: a test that fails shows it."""
        traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    """What both have in common; `answer` does what is asked."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def __getattr__(self, name: str) -> Any:
        if name in ("do_GET", "do_POST", "do_PUT", "do_HEAD"):
            return self._do
        raise AttributeError(name)

    def _do(self) -> None:
        hub = self.hub = self.server.hub
        token = self.headers.get("Authorization")
        hub.asked.append((self.command, self.server.url + self.path, token))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        for item in hub.before:
            if item[0] in self.path:
                hub.before.remove(item)
                item[1]()
                break
        for failing in hub.failing:
            if failing[0] in self.path:
                hub.failing.remove(failing)
                self.reply(failing[1], {"error": "not now"})
                return
        self.silent = next((word for word in hub.lost if word in self.path), None)
        if self.silent is not None:
            hub.lost.remove(self.silent)
        self.answer(parts.path)

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def reply(self, status: int, value: object = None, **headers: str) -> None:
        """Answer; or close the connection, where this answer is to be lost."""
        if getattr(self, "silent", None) is not None:
            self.close_connection = True
            self.connection.close()
            return
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if any(word in self.path for word in self.hub.cut) and len(data) > 1:
            self.hub.cut = [word for word in self.hub.cut if word not in self.path]
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def send(self, name: str, data: bytes) -> None:
        """Answer with a file, or with the rest of one."""
        data = self.hub.serve(name, data)
        asked = self.headers.get("Range")
        if asked is None:
            self.reply(200, data)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        held = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206, data[start:], Content_Range=held)

    def log_message(self, *_: object) -> None:
        pass


class _Storage(_Handler):
    """Where large files are kept; it knows no tokens, and must be shown none."""

    def answer(self, path: str) -> None:
        name = path.removeprefix("/")
        if self.command == "PUT":
            number = self.query.get("part")
            if number:
                self.hub.parts.setdefault(name, {})[number[0]] = self.body
            elif hashlib.sha256(self.body).hexdigest() != name:
                self.reply(400, {"error": "another file"})
                return
            else:
                self.hub.large[name] = self.body
            self.reply(200, b"", ETag=f'"{hashlib.md5(self.body).hexdigest()}"')
        elif name in self.hub.large:
            self.send(self.query["name"][0], self.hub.large[name])
        else:
            self.reply(404, {})


class _Api(_Handler):
    """The API."""

    def answer(self, path: str) -> None:
        words = unquote(path).strip("/").split("/")
        if self.command == "POST":
            self.post(path, words)
        elif words[:2] == ["api", "models"]:
            self.model(words)
        elif words[:2] == ["api", "resolve-cache"]:
            if found := self.find("/".join(words[2:4]), words[4]):
                self.send("/".join(words[5:]), found[1]["/".join(words[5:])])
        elif words[2:3] == ["resolve"]:
            self.resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self.reply(404, {})

    def allowed(self) -> bool:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return given in self.hub.tokens

    def find(self, name: str, revision: str = "main") -> tuple[str, Files] | None:
        """Return a commit, or answer that there is none."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.allowed()):
            self.reply(401, {"error": "no"}, X_Error_Code="RepoNotFound")
            return None
        found = repository.at(revision)
        if found is None:
            self.reply(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        return found

    def model(self, words: list[str]) -> None:
        name, kind, revision = "/".join(words[2:4]), words[4], words[5]
        found = self.find(name, revision)
        if found is None:
            return
        commit, files = found
        if kind == "revision":
            siblings = [{"rfilename": path} for path in files]
            private = self.hub.repositories[name].private
            self.reply(200, {"id": name, "sha": commit, "siblings": siblings, "private": private})
            return
        assert kind == "tree"
        paths = sorted(files)
        start = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if start + 2 < len(paths):  # two at a time
            more["Link"] = f"<{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor="
            more["Link"] += f'{start + 2}>; rel="next"'
        self.reply(200, [_entry(p, files[p]) for p in paths[start : start + 2]], **more)

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.find(name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self.reply(404, {"error": "no"}, X_Error_Code="EntryNotFound")
        elif len(files[path]) >= LARGE:
            oid = hashlib.sha256(files[path]).hexdigest()
            self.hub.large.setdefault(oid, files[path])
            place = f"{self.hub.storage}/{oid}?name={quote(path)}&X-Amz-Signature=s1gned"
            self.reply(302, {}, Location=place)
        else:
            self.reply(307, {}, Location=f"/api/resolve-cache/{name}/{commit}/{quote(path)}")

    def post(self, path: str, words: list[str]) -> None:
        if path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
            return
        if words[0] == "complete":  # its own address is the key to it
            parts = self.hub.parts.pop(words[1])
            data = b"".join(parts[number] for number in sorted(parts, key=int))
            assert hashlib.sha256(data).hexdigest() == json.loads(self.body)["oid"] == words[1]
            self.hub.large[words[1]] = data
            self.reply(200, {})
            return
        if not self.allowed():
            self.reply(401, {"error": "Invalid username or password."})
            return
        if path == "/api/repos/create":
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                self.reply(409, {"error": "You already created this model repo",
                                 "url": f"{self.hub.url}/{name}"})  # fmt: skip
                return
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repository(name, private=bool(private))
            self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})
        elif words[2:] == ["info", "lfs", "objects", "batch"]:
            asked = json.loads(self.body)
            self.reply(
                200, {"transfer": "basic", "objects": [self.batch(o) for o in asked["objects"]]}
            )
        elif words[0] == "verify":
            asked = json.loads(self.body)
            held = self.hub.large.get(asked["oid"])
            self.reply(200 if held is not None and len(held) == asked["size"] else 404, {})
        elif words[4] == "preupload":
            asked = json.loads(self.body)
            files = self.hub.repositories["/".join(words[2:4])].files
            self.reply(200, {"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                 "oid": _oid(files.get(file["path"]))}
                for file in asked["files"]
            ]})  # fmt: skip
        elif words[4] == "commit":
            self.commit("/".join(words[2:4]))
        else:
            self.reply(404, {})

    def batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size, hub = wanted["oid"], wanted["size"], self.hub
        if oid in hub.large:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{hub.storage}/{oid}"}
        if hub.part_size is not None:
            count = -(-size // hub.part_size)
            upload = {
                "href": f"{hub.url}/complete/{oid}",
                "header": {"chunk_size": str(hub.part_size)}
                | {str(n): f"{hub.storage}/{oid}?part={n}" for n in range(1, count + 1)},
            }
        verify = {"href": f"{hub.url}/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def commit(self, name: str) -> None:
        repository = self.hub.repositories[name]
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.head):
            self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        oid = repository.commit(files, header["summary"])
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url})


def _oid(data: bytes | None) -> str | None:
    """Return what the Hub calls a file's object id: of LFS, or of git."""
    if data is None:
        return None
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """Return a file as the Hub lists it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if len(data) >= LARGE:
        entry["oid"] = hashlib.sha1(path.encode()).hexdigest()
        entry["lfs"] = {"oid": _oid(data), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def running(context: ssl.SSLContext) -> Iterator[Hub]:
    """Run the stand-in."""
    hub = Hub(context)
    try:
        yield hub
    finally:
        hub.close()
