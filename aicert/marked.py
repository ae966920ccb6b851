"""YAML and JSON text as data, with the place of every value.

Only what a configuration needs is read: mappings with text keys, lists, and scalars. Anchors,
aliases and tags are refused, so a small text cannot grow and cannot name a Python object; size and
depth are bounded. In YAML a value that is not quoted keeps its text (`no`, `1.10` and `0123` stay
what was written) unless the caller asks for a number in that place. PyYAML is imported when YAML is
read, and not before.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 16

Path = tuple[str | int, ...]
Place = tuple[int, int]
"""Line and column, both from 1."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the text that keeps it, or a part of it, from being data."""

    path: Path
    what: str
    place: Place
    advice: str | None = None


@dataclass(slots=True)
class Marked:
    """Data, and where it stood: the place of each value, and of each key of a mapping."""

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path, *, of_key: bool = False) -> Place | None:
        """Return where `path` stands, or else the nearest thing around it."""
        if of_key and path in self.keys:
            return self.keys[path]
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path)


class _StopError(Exception):
    """The text cannot be read any further."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def read_yaml(text: str, *, number: Callable[[Path], bool]) -> Marked:
    """Read one YAML document; `number` tells where a plain scalar may be a number or boolean.

    Never raises for what the text holds: see `Marked.faults`.
    """
    import yaml

    marked = Marked()
    try:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = yaml.parse(text, Loader=loader)
        _YamlReader(yaml, events, marked, number).read()
    except _StopError as stop:
        marked.faults.append(stop.fault)
    except yaml.YAMLError as error:
        marked.faults.append(_yaml_fault(error, text))
    return marked


def read_json(text: str) -> Marked:
    """Read one JSON document; never raises for what the text holds: see `Marked.faults`."""
    marked = Marked()
    try:
        _JsonReader(text, marked).read()
    except _StopError as stop:
        marked.faults.append(stop.fault)
    return marked


# -- YAML ----------------------------------------------------------------------------------------


class _YamlReader:
    def __init__(
        self, yaml: Any, events: Iterator[Any], marked: Marked, number: Callable[[Path], bool]
    ) -> None:
        self._yaml = yaml
        self._events = events
        self._marked = marked
        self._number = number

    def read(self) -> None:
        for event in self._events:
            if isinstance(event, self._yaml.StreamStartEvent | self._yaml.DocumentStartEvent):
                continue
            if isinstance(event, self._yaml.StreamEndEvent):
                return
            self._marked.data = self._value(event, ())
            break
        next(self._events)  # the document's end
        following = next(self._events)
        if not isinstance(following, self._yaml.StreamEndEvent):
            raise _StopError(
                Fault((), "has more than one document", _place(following), "Remove '---'")
            )

    def _value(self, event: Any, path: Path) -> Any:
        place = _place(event)
        self._marked.values[path] = place
        if len(path) > MAX_DEPTH:
            raise _StopError(Fault(path, "nests too deep", place))
        if isinstance(event, self._yaml.AliasEvent) or event.anchor is not None:
            # Refused altogether: an alias of aliases grows without end.
            what = "uses an anchor or alias (& or *)"
            fault = Fault(path, what, place, "Write it out, or put the text in quotes")
            if isinstance(event, self._yaml.AliasEvent):
                self._marked.faults.append(fault)
                return None
            self._marked.faults.append(fault)
        if event.tag is not None:
            self._marked.faults.append(
                Fault(path, f"has a tag ({event.tag[:40]!r})", place, "Remove the tag")
            )
        if isinstance(event, self._yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, self._yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(inner := next(self._events), self._yaml.SequenceEndEvent):
                items.append(self._value(inner, (*path, len(items))))
            return items
        return self._mapping(path)

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            place = _place(event)
            if not isinstance(event, self._yaml.ScalarEvent):
                raise _StopError(Fault(path, "has a key that is not a text", place))
            key = event.value
            if event.anchor is not None or event.tag is not None:
                fault = Fault(path, "has a key with an anchor or a tag", place, "Remove it")
                self._marked.faults.append(fault)
            inner = (*path, key)
            if key in found:
                first = self._marked.keys[inner]
                what = f"stands twice; the first is on line {first[0]}"
                self._marked.faults.append(Fault(inner, what, place, "Remove one of the two"))
                kept = self._marked.values[inner]
                self._value(next(self._events), inner)
                self._marked.values[inner] = kept
                continue
            self._marked.keys[inner] = place
            found[key] = self._value(next(self._events), inner)
        return found

    def _scalar(self, event: Any, path: Path) -> Any:
        text: str = event.value
        if event.style:  # quoted, or a block; plain is None or "", as the loader is
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        return _plain(text) if self._number(path) else text


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})?\.?[0-9]{1,18}(?:[eE][-+]?[0-9]{1,3})?")


def _plain(text: str) -> Any:
    """Return the number or boolean that a plain scalar is (YAML 1.2.2, 10.3), or its text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _place(event: Any) -> Place:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _yaml_fault(error: Exception, text: str) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        place = (line, position - (text.rfind("\n", 0, position) + 1) + 1)
        return Fault((), "is not YAML: it has a character that no text has", place)
    what = getattr(error, "problem", None) or "it cannot be read"
    context = getattr(error, "context", None)
    lines = text.split("\n")
    indent = lines[mark.line] if mark.line < len(lines) else ""
    advice = None
    if "\t" in indent[: len(indent) - len(indent.lstrip())]:
        advice = "Indent with spaces, not with tabs"
    elif ": " in indent.partition(": ")[2] and "{" not in indent:
        advice = "A text with ': ' in it must be quoted"
    what = f"is not YAML: {what}" + (f" ({context})" if context else "")
    return Fault((), what, (mark.line + 1, mark.column + 1), advice)


# -- JSON ----------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_SCAN_STRING: Callable[[str, int, bool], tuple[str, int]] = json.decoder.scanstring  # type: ignore[attr-defined]
_WORDS = {"true": True, "false": False, "null": None}


class _JsonReader:
    """RFC 8259 with places; text, numbers and words are those of the standard library."""

    def __init__(self, text: str, marked: Marked) -> None:
        self._text = text
        self._marked = marked
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._at = 0

    def read(self) -> None:
        self._skip()
        self._marked.data = self._value(())
        self._skip()
        if self._at < len(self._text):
            raise self._stop("has something after its end")

    def _value(self, path: Path) -> Any:
        self._marked.values[path] = self._place(self._at)
        if len(path) > MAX_DEPTH:
            raise self._stop("nests too deep")
        character = self._text[self._at : self._at + 1]
        if character == '"':
            return self._string()
        if character == "{":
            return self._object(path)
        if character == "[":
            return self._array(path)
        if match := _NUMBER.match(self._text, self._at):
            self._at = match.end()
            return self._number(match)
        for word, value in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return value
        raise self._stop("is not JSON: a value is expected here")

    def _number(self, match: re.Match[str]) -> int | float:
        if match[1] is None and match[2] is None and len(match[0]) < 20:
            return int(match[0])
        value = float(match[0]) if len(match[0]) < 40 else math.inf
        if not math.isfinite(value):
            self._at = match.start()
            raise self._stop("has a number that cannot be kept exact")
        return value

    def _string(self) -> str:
        try:
            value, self._at = _SCAN_STRING(self._text, self._at + 1, True)
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self._stop(f"is not JSON: {error.msg}") from None
        return value

    def _array(self, path: Path) -> list[Any]:
        items: list[Any] = []
        self._at += 1
        self._skip()
        if self._take("]"):
            return items
        while True:
            items.append(self._value((*path, len(items))))
            self._skip()
            if self._take("]"):
                return items
            self._comma("]")

    def _object(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        self._skip()
        if self._take("}"):
            return found
        while True:
            start = self._at
            if self._text[start : start + 1] != '"':
                raise self._stop("is not JSON: a key in double quotes is expected here")
            key = self._string()
            self._skip()
            if not self._take(":"):
                raise self._stop("is not JSON: ':' is expected here")
            self._skip()
            inner = (*path, key)
            if key in found:
                what = f"stands twice; the first is on line {self._marked.keys[inner][0]}"
                fault = Fault(inner, what, self._place(start), "Remove one of the two")
                self._marked.faults.append(fault)
                kept = self._marked.values[inner]
                self._value(inner)
                self._marked.values[inner] = kept
            else:
                self._marked.keys[inner] = self._place(start)
                found[key] = self._value(inner)
            self._skip()
            if self._take("}"):
                return found
            self._comma("}")

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _take(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False

    def _comma(self, end: str) -> None:
        if not self._take(","):
            raise self._stop(f"is not JSON: ',' or '{end}' is expected here")
        self._skip()
        if self._text.startswith(end, self._at):
            raise self._stop("is not JSON: a comma stands before the end", "Remove the comma")

    def _place(self, position: int) -> Place:
        line = bisect_right(self._lines, position)
        return line, position - self._lines[line - 1] + 1

    def _stop(self, what: str, advice: str | None = None) -> _StopError:
        return _StopError(Fault((), what, self._place(self._at), advice))
