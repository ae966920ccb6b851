"""Patterns over URIs of inputs, for policies: `https://data.example/**`.

`*` stands for any characters but `/`, and in the host for one label; `**` for any characters at
all. Everything else stands for itself. One place can be written in many ways (`/a/../b`, `%2e`,
capitals or a user's name in a host), so a URI is held against a pattern in three forms: as it is
written, as a client would resolve it, and as a careless server might, which decodes all that is
encoded. What is allowed must match in each; what is forbidden matches in any.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

MAX_LENGTH = 1024
"""The longest pattern, in characters."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_AUTHORITY = re.compile(r"//([^/?#]*)")
_UNRESERVED = re.compile(r"(?:%(?:2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE]))+")
_PORTS = {"http": ":80", "https": ":443", "git+https": ":443", "git+http": ":80"}
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_WILDCARD = re.compile(r"(\*+)")
_HOST_PORT = re.compile(r"(\[.*\]|[^:]*):?(.*)", re.DOTALL)  # RFC 3986, 3.2.2: [::1]:443
_SLASHES = re.compile(r"[/\\]+")
_MAX_LABEL = 63
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class UriPattern:
    """A pattern, as it was written. Get one from `parse`, which says what is wrong with it."""

    text: str

    def allows(self, uri: str) -> bool:
        """Tell whether `uri` matches however it is read.

        A URI with white space, control characters or backslashes, which clients read differently,
        never does.
        """
        return not _UNSAFE.search(uri) and all(self._matches(uri))

    def forbids(self, uri: str) -> bool:
        """Tell whether `uri` matches in any way of reading it."""
        return any(self._matches(uri))

    def _matches(self, uri: str) -> Iterator[bool]:
        """Yield whether `uri` matches, form by form; the pattern is taken in the same form."""
        # Mostly the forms are one and the same.
        for own, form in dict.fromkeys(zip(forms(self.text), forms(uri), strict=True)):
            yield self.text == "**" or self._match(own, form)

    @staticmethod
    def _match(own: "Parts", form: "Parts") -> bool:
        if own.scheme != form.scheme:
            return False
        if own.host is None:
            whole = form.rest if form.host is None else f"//{form.host}{form.rest}"
            return _match(own.rest, whole, "/")
        # A `*` in a host is one label: it reaches over no dot, port or user name.
        return (
            form.host is not None
            and _match(own.host, form.host, "/.@:")
            and _match(own.rest, form.rest, "/")
        )

    def __str__(self) -> str:
        """Return the pattern as it was written."""
        return self.text


@dataclass(frozen=True, slots=True)
class Parts:
    """A URI in parts: scheme and host in lower case, and whatever follows, as it is."""

    scheme: str
    host: str | None
    rest: str


def parse(text: str) -> UriPattern:
    """Parse a pattern.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"is longer than {MAX_LENGTH} characters")
    if _UNSAFE.search(text):
        raise ValueError("has white space, a control character or a backslash")
    if text != "**" and not _SCHEME.match(text):
        raise ValueError("does not begin with a scheme, such as https:, hf: or file:")
    if "**" in (_part(text).host or ""):
        raise ValueError("has ** in its host, where * stands for one label of a name")
    return UriPattern(text)


@lru_cache(maxsize=1024)
def forms(uri: str) -> tuple[Parts, Parts, Parts]:
    """Return the URI in parts: as it is written, as a client resolves it, and with all decoded.

    Resolving decodes what need not be percent-encoded and removes `.` and `..` (RFC 3986, 6.2.2);
    of an address in the web it takes away the user's name, and what else changes no host. The last
    form decodes everything, as often as it is encoded, and takes many slashes for one.
    """
    written = _part(uri)
    host = None if written.host is None else _host(written.scheme, written.host)
    path, tail = _split(written.rest)
    if host is not None and not path:
        path = "/"
    resolved = _without_dots(_UNRESERVED.sub(lambda found: unquote(found[0]), path))
    decoded = _without_dots(_SLASHES.sub("/", _decoded(path)))
    return (
        written,
        Parts(written.scheme, host, resolved + tail),
        Parts(written.scheme, host, decoded + tail),
    )


def _host(scheme: str, host: str) -> str:
    """Return the host that a client of the web asks, with its port where that is not the usual."""
    if scheme not in _PORTS:
        return host
    # What may stand for a letter or a dot in a name (UTS 46) becomes it.
    name = unicodedata.normalize("NFKC", unquote(host.rpartition("@")[2])).lower()
    found = _HOST_PORT.fullmatch(name.replace("\u3002", "."))
    assert found is not None  # anything matches
    port = found[2].lstrip("0")
    labels = ".".join(map(_label, found[1].rstrip(".").split(".")))
    return labels + (f":{port}" if port and f":{port}" != _PORTS[scheme] else "")


def _label(label: str) -> str:
    """Return one part of a host's name as it is asked for (RFC 5890, 2.3.2.1): in ASCII."""
    if label.isascii() or len(label) > _MAX_LABEL:  # a longer one is no name, and takes long
        return label
    return f"xn--{label.encode('punycode').decode('ascii')}"


def _decoded(text: str) -> str:
    for _ in range(_ROUNDS):
        text, before = unquote(text), text
        if text == before:
            break
    return text


@lru_cache(maxsize=1024)
def _part(uri: str) -> Parts:
    found = _SCHEME.match(uri)
    scheme, start = ("", 0) if found is None else (found[1].lower(), found.end())
    authority = _AUTHORITY.match(uri, start)
    if authority is None:
        return Parts(scheme, None, uri[start:])
    host = authority[1].lower().removesuffix(_PORTS.get(scheme, " "))
    return Parts(scheme, host, uri[authority.end() :])


def _split(rest: str) -> tuple[str, str]:
    """Part a path from the query and the fragment after it."""
    end = min((at for at in (rest.find("?"), rest.find("#")) if at >= 0), default=len(rest))
    return rest[:end], rest[end:]


def _without_dots(path: str) -> str:
    path = path.replace("\\", "/")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if len(parts) > path.startswith("/"):  # the root stays
                parts.pop()
        elif part != ".":
            parts.append(part)
    if path.endswith(("/.", "/..")):
        parts.append("")
    return "/".join(parts)


def _match(pattern: str, text: str, stops: str) -> bool:
    """Match a pattern in time proportional to its length times the text's.

    Instead of going back and forth it keeps every place in the text that it may have come to.
    """
    places = {0}
    for piece in _WILDCARD.split(pattern):
        if not places:
            return False
        if piece == "*":
            reached: set[int] = set()
            for place in sorted(places):
                while place not in reached:
                    reached.add(place)
                    if place == len(text) or text[place] in stops:
                        break
                    place += 1
            places = reached
        elif piece.startswith("*"):
            places = set(range(min(places), len(text) + 1))
        else:
            places = {p + len(piece) for p in places if text.startswith(piece, p)}
    return len(text) in places
