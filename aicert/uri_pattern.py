"""Patterns over URIs of inputs, for policies: `https://data.example/**`.

`*` stands for any characters but `/`, and in the host for one label; `**` for any characters at
all. Everything else stands for itself. One place can be written in many ways (`/a/../b`, `%2e`,
capitals in a host), so a URI is held against a pattern in two forms: as it is written, and as a
client would resolve it. What is allowed must match in both; what is forbidden matches in either.
"""

import re
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class UriPattern:
    """A pattern, as it was written. Get one from `parse`, which says what is wrong with it."""

    text: str

    def allows(self, uri: str) -> bool:
        """Tell whether `uri` matches however it is read.

        A URI with white space, control characters or backslashes, which clients read differently,
        never does.
        """
        return not _UNSAFE.search(uri) and all(self._matches(form) for form in forms(uri))

    def forbids(self, uri: str) -> bool:
        """Tell whether `uri` matches in any way of reading it."""
        return any(self._matches(form) for form in forms(uri))

    def _matches(self, form: "Parts") -> bool:
        if self.text == "**":
            return True
        own = _part(self.text)
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


def forms(uri: str) -> tuple[Parts, Parts]:
    """Return the URI in parts, as it is written and as a client would resolve it.

    Resolving decodes what need not be percent-encoded and removes `.` and `..` (RFC 3986, 6.2.2).
    """
    written = _part(uri)
    path, tail = _split(_UNRESERVED.sub(lambda found: unquote(found[0]), written.rest))
    return written, replace(written, rest=_without_dots(path.replace("\\", "/")) + tail)


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
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts and parts[-1] not in ("", ".."):
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
