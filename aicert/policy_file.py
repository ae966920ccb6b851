"""Policies in files: YAML or JSON, checked, with every mistake named at once.

A policy may name other files: policies that it extends, roots, signed reference values, roots of
timestamp authorities. They are found relative to the file that names them, and read here, once, so
that a loaded policy is complete and checking a certificate opens no file.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from aicert import manifest, marked, reference, trust, uri_pattern
from aicert import policy as rules
from aicert.assurance import Assurance
from aicert.errors import Error
from aicert.events import MAX_BAR, Bar
from aicert.policy import FORMAT, InputMatcher, Policy, Rule

MAX_BYTES = 256 << 10
MAX_DEPTH = 8
MAX_FILES = 64
MAX_ITEMS = 1000
_MAX_MISTAKES = 100
_MAX_TEXT = 4096

Place = tuple[str | int, ...]

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_TARGET = re.compile(r"/inputs/.{1,1016}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,62}(?:\.\*)?")
_AGE = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake: its place (line and column from 1, where known), what is wrong, what to do."""

    source: str
    line: int | None
    column: int | None
    path: str
    what: str
    advice: str | None = None

    def __str__(self) -> str:
        """Return the mistake on one line."""
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        subject = f"{self.path}: " if self.path else ""
        return f"{place}: {subject}{self.what}" + (f". {self.advice}" if self.advice else "")


class PolicyFileError(Error):
    """A policy has mistakes; `mistakes` has all of them, in the order of the text."""

    code = "policy.file"
    remedy = "mend the policy; `aicert policy check` reads it alone"

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        """Name every mistake of the policy that came from `source`."""
        self.source = source
        self.mistakes = tuple(mistakes[:_MAX_MISTAKES])
        count = len(mistakes)
        lines = [f"{source}: {count} mistake{'s' if count != 1 else ''} in the policy"]
        lines += [f"  {mistake}" for mistake in self.mistakes]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the arguments, so that the error crosses processes whole."""
        return (type(self), (self.source, self.mistakes))

    def diagnostics(self) -> str:
        """Return the mistakes, one a line."""
        head, *rest = self.message.split("\n")
        return "\n".join([f"{head}  [{self.code}]", *rest])


def load(path: Path) -> Policy:
    """Read a policy file and all that it names; see `Policy.load`.

    Raises:
        PolicyFileError: something cannot be read, or has mistakes.
    """
    files = _Files()
    policy = files.policy(path, str(path), ())
    if policy is None:
        raise PolicyFileError(str(path), files.mistakes)
    return policy


def parse(text: str, source: str = "policy") -> Policy:
    """Read a policy from text that names no other files; see `Policy.parse`.

    Raises:
        PolicyFileError: it has mistakes, or names files.
    """
    files = _Files()
    policy = _Reading(files, source, None, ()).read(text.encode("utf-8", "surrogatepass"))
    if policy is None:
        raise PolicyFileError(source, files.mistakes)
    return policy


class _Files:
    """The files that one policy is made of, each read once, and the mistakes in all of them."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._policies: dict[Path, Policy | None] = {}

    def policy(self, path: Path, shown: str, above: tuple[Path, ...]) -> Policy | None:
        """Read a policy file, or return None after noting what is wrong with it."""
        known = path.resolve()
        if known not in self._policies:
            self._policies[known] = None
            try:
                data = read_file(path, MAX_BYTES)
            except ValueError as error:
                self.mistakes.append(Mistake(shown, None, None, "", str(error)))
            else:
                reading = _Reading(self, shown, path.parent, (*above, known))
                self._policies[known] = reading.read(data)
        return self._policies[known]

    @property
    def full(self) -> bool:
        """Tell whether no more policies may be read."""
        return len(self._policies) >= MAX_FILES


def read_file(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        ValueError: it cannot be read or is larger; the message says so.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ValueError(f"is too large (over {limit} bytes)")
    return data


class _Reading:
    """One policy text being read: what is wrong is noted with its place, and reading goes on."""

    def __init__(
        self, files: _Files, source: str, folder: Path | None, above: tuple[Path, ...]
    ) -> None:
        self._files = files
        self._source = source
        self._folder = folder
        self._above = above
        self._marked = marked.Marked()
        self._good = True
        self._documents: list[reference.Reference] = []
        self._authorities: list[x509.Certificate] = []

    def read(self, data: bytes) -> Policy | None:
        """Return the policy, or None after noting every mistake."""
        before = len(self._files.mistakes)
        policy = self._read(data)
        own = self._files.mistakes[before:]
        own.sort(key=lambda m: (m.source != self._source, m.line or 0, m.column or 0))
        self._files.mistakes[before:] = own
        return policy if self._good else None

    def _read(self, data: bytes) -> Policy | None:
        if len(data) > MAX_BYTES:
            self._note((), f"is too large for a policy (over {MAX_BYTES} bytes)")
            return None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._note((), f"is not UTF-8: {error.reason} at byte {error.start}")
            return None
        if self._source.endswith(".json") or text.lstrip()[:1] == "{":
            self._marked = marked.read_json(text)
        else:
            try:
                self._marked = marked.read_yaml(text, number=_is_number)
            except ModuleNotFoundError:
                self._note((), "is YAML, and PyYAML is not installed", "Install it, or write JSON")
                return None
        for fault in self._marked.faults:
            self._note(fault.path, fault.what, fault.advice, place=fault.place)
        if self._marked.faults and self._marked.data is None:
            return None
        return self._policy(self._marked.data)

    def _policy(self, data: Any) -> Policy | None:
        fields = self._mapping((), data, _FIELDS, required=("policy",))
        if fields is None:
            return None
        version = fields.get("policy", FORMAT)
        if type(version) is not int or version != FORMAT:
            what = f"is version {_shown(version)}, which this aicert does not know"
            self._note(("policy",), what, f"Write policy: {FORMAT}")
        name, description = Path(self._source).stem, ""
        if "name" in fields:
            name = self._text(("name",), fields["name"]) or name
        if "description" in fields:
            description = self._text(("description",), fields["description"]) or ""
        # What a policy does not say is not weaker than the default.
        found = [self._assurance(("assurance",), fields.get("assurance", "hardware"))]
        for key, read in _RULES.items():
            if key in fields:
                found += read(self, (key,), fields[key])
        parts = self._extends(("extends",), fields["extends"]) if "extends" in fields else []
        pins = self._trust(("trust",), fields["trust"]) if "trust" in fields else []
        return Policy(
            name=name,
            source=self._source,
            rules=tuple(rule for rule in found if rule is not None),
            parts=tuple(parts),
            description=" ".join(description.split()),
            pins=tuple(pins),
            documents=tuple(self._documents),
            authorities=tuple(self._authorities),
        )

    # -- fields that are no rules ----------------------------------------------------------------

    def _extends(self, path: Place, data: Any) -> list[Policy]:
        parts = []
        for where, item in self._items(path, data):
            file = self._file(where, item)
            if file is None:
                continue
            target, shown = file
            if target.resolve() in self._above:
                self._note(where, "goes in a circle: the file is among those that extend this one")
            elif len(self._above) >= MAX_DEPTH or self._files.full:
                what = f"goes too deep, or too far (over {MAX_DEPTH} levels or {MAX_FILES} files)"
                self._note(where, what)
            else:
                part = self._files.policy(target, shown, self._above)
                if part is None:
                    self._note(where, f"names a policy that cannot be used ({shown})")
                else:
                    parts.append(part)
        return parts

    def _trust(self, path: Place, data: Any) -> list[trust.Pin]:
        pins: list[trust.Pin] = []
        for where, item in self._items(path, data):
            fields = self._mapping(
                where, item, ("file", "assurance"), required=("file", "assurance")
            )
            if fields is None or not {"file", "assurance"} <= fields.keys():
                continue
            worth = fields["assurance"]
            if worth not in ("simulated", "hardware"):
                self._note(
                    (*where, "assurance"),
                    f"is {_shown(worth)}; a root is worth simulated or hardware",
                    "More than that, only reference values show",
                )
                continue
            for root, shown in self._certificates((*where, "file"), fields["file"]):
                name = root.subject.rfc4514_string()[:200]
                pins.append(trust.Pin(name, trust.fingerprint(root), worth, shown))
        return pins

    # -- rules -----------------------------------------------------------------------------------

    def _assurance(self, path: Place, data: Any) -> Rule | None:
        words = [str(level) for level in Assurance]
        if data not in words:
            self._note(path, f"is {_shown(data)}, no assurance", _did_you_mean(data, words))
            return None
        return rules.LeastAssurance(_dotted(path), Assurance[data.upper()])

    def _roots(self, path: Place, data: Any) -> list[Rule]:
        builtin = {pin.name: pin.fingerprint for pin in trust.TrustStore.builtin().list()}
        fingerprints, names = [], []
        for where, item in self._items(path, data):
            text = self._text(where, item)
            if text is None:
                continue
            if found := _DIGEST.fullmatch(text):
                fingerprints.append(found[1])
                names.append(f"sha256:{found[1]}")
            elif text in builtin:
                fingerprints.append(builtin[text])
                names.append(text)
            else:
                # A name is only that of a root that is built in: anybody can name a root.
                what = f"is {_shown(text)}, neither a fingerprint (sha256:...) nor a built-in root"
                self._note(where, what, _did_you_mean(text, list(builtin)))
        return [rules.AllowedRoots(_dotted(path), tuple(fingerprints), tuple(names))]

    def _images(self, path: Place, data: Any) -> list[Rule]:
        digests = [self._digest(where, item) for where, item in self._items(path, data)]
        return [rules.AllowedImages(_dotted(path), tuple(filter(None, digests)))]

    def _reference(self, path: Place, data: Any) -> list[Rule]:
        fields = self._mapping(path, data, ("signers", "documents"), required=("signers",)) or {}
        signers = [
            self._digest(where, item)
            for where, item in self._items((*path, "signers"), fields.get("signers", ()))
        ]
        keys = tuple(filter(None, signers))
        digests: list[str] | None = None
        if "documents" in fields:
            digests = []
            for where, item in self._items((*path, "documents"), fields["documents"]):
                one = self._mapping(where, item, ("file", "sha256"))
                if one is None:
                    continue
                if len(one) != 1:
                    self._note(where, "needs either file or sha256")
                elif "sha256" in one:
                    digest = self._digest((*where, "sha256"), one["sha256"])
                    digests += [digest] if digest else []
                elif document := self._document((*where, "file"), one["file"], keys):
                    self._documents.append(document)
                    digests.append(document.digest)
        documents = None if digests is None else tuple(digests)
        return [rules.MatchReference(_dotted(path), keys, documents)]

    def _document(
        self, path: Place, data: Any, signers: tuple[str, ...]
    ) -> reference.Reference | None:
        file = self._file(path, data)
        if file is None:
            return None
        try:
            document = reference.parse(read_file(file[0], reference.MAX_BYTES))
            document.require_signer(signers)
        except ValueError as error:
            self._note(path, f"names a file that {error}")
            return None
        except Error as error:
            self._note(path, f"names a file that cannot be used: {_sentence(error)}")
            return None
        return document

    def _inputs(self, path: Place, data: Any) -> list[Rule]:
        fields = self._mapping(path, data, ("require", "forbid", "only", "exactly")) or {}
        found: list[Rule] = []
        for where, item in self._items((*path, "require"), fields.get("require", ())):
            if matcher := self._matcher(where, item):
                found.append(rules.RequiredInput(_dotted(where), matcher))
        for where, item in self._items((*path, "forbid"), fields.get("forbid", ())):
            if matcher := self._matcher(where, item, forbid=True):
                found.append(rules.ForbiddenInput(_dotted(where), matcher))
        if "only" in fields:
            where = (*path, "only")
            each = [self._matcher(at, item) for at, item in self._items(where, fields["only"])]
            found.append(rules.OnlyInputs(_dotted(where), tuple(filter(None, each))))
        if "exactly" in fields:
            where = (*path, "exactly")
            found.append(rules.ExactInputs(_dotted(where), self._exactly(where, fields["exactly"])))
        return found

    def _exactly(self, path: Place, data: Any) -> tuple[InputMatcher, ...]:
        matchers, seen = [], set()
        for where, item in self._items(path, data):
            matcher = self._matcher(where, item)
            if matcher is None:
                continue
            if matcher.target is None:
                self._note(where, "lacks a target", "Say where it lies, such as /inputs/data")
            elif matcher.target in seen:
                self._note(where, "has the target of another one", "Each input has its own")
            seen.add(matcher.target)
            matchers.append(matcher)
        return tuple(matchers)

    def _matcher(self, path: Place, data: Any, *, forbid: bool = False) -> InputMatcher | None:
        if type(data) is str:
            what = "is a text; an input is described by uri, sha256, root, manifest or gitCommit"
            kind = "sha256" if _DIGEST.fullmatch(data) else "uri"
            self._note(path, what, f"Write {kind}: {data[:80]}")
            return None
        own = () if forbid else ("name", "target")
        known = ("uri", "sha256", "root", "manifest", "gitCommit", *own)
        fields = self._mapping(path, data, known)
        if fields is None:
            return None
        if not fields.keys() - {"name", "target"}:
            what = "says nothing of where the input is from or what is in it"
            self._note(
                path, what, "Give uri, sha256, root, manifest or gitCommit; names are the builder's"
            )
            return None
        uri = None
        if "uri" in fields and (text := self._text((*path, "uri"), fields["uri"])) is not None:
            try:
                uri = uri_pattern.parse(text)
            except ValueError as error:
                what = f"is {_shown(text)}, no pattern over URIs: it {error}"
                self._note((*path, "uri"), what, "For example https://data.example/sets/**")
        digests = {
            key: self._digest((*path, key), fields[key])
            for key in ("sha256", "root", "manifest")
            if key in fields
        }
        return InputMatcher(
            uri=uri,
            sha256=digests.get("sha256"),
            root=digests.get("root"),
            manifest=digests.get("manifest"),
            git_commit=self._like((*path, "gitCommit"), fields, _COMMIT, "a full git commit"),
            name=self._like((*path, "name"), fields, _NAME, "the name of an input"),
            target=self._target((*path, "target"), fields),
        )

    def _command(self, path: Place, data: Any) -> list[Rule]:
        if type(data) is list and data and all(type(item) is str for item in data):
            words = ", ".join(data)[:80]
            what = "is a list of words; say whether the command equals them or starts with them"
            self._note(path, what, f"Write equals: [{words}]")
            return []
        items = self._items(path, data) if type(data) is list else [(path, data)]
        patterns = []
        for where, item in items:
            fields = self._mapping(where, item, ("equals", "starts"))
            if fields is None:
                continue
            if len(fields) != 1:
                self._note(where, "needs either equals or starts")
                continue
            ((key, words_data),) = fields.items()
            each = [self._text(at, word) for at, word in self._items((*where, key), words_data)]
            good = tuple(word for word in each if word is not None)
            patterns.append(rules.CommandPattern(good, exact=key == "equals"))
        return [rules.AllowedCommands(_dotted(path), tuple(patterns))]

    def _environment(self, path: Place, data: Any) -> list[Rule]:
        fields = self._mapping(path, data, ("require", "only")) or {}
        found: list[Rule] = []
        where: Place = (*path, "require")
        required = self._mapping(where, fields["require"], None) if "require" in fields else {}
        for variable, item in (required or {}).items():
            value = self._text((*where, variable), item, empty=True)
            if not _VARIABLE.fullmatch(variable):
                self._note((*where, variable), "is not the name of a variable", of_key=True)
            elif value is not None:
                found.append(rules.RequiredVariable(_dotted((*where, variable)), variable, value))
        if "only" in fields:
            where = (*path, "only")
            names = []
            for at, item in self._items(where, fields["only"], empty=True):
                name = self._text(at, item)
                if name is not None and not _VARIABLE.fullmatch(name):
                    self._note(at, f"is {_shown(name)}, not the name of a variable")
                names.append(name or "")
            found.append(rules.OnlyVariables(_dotted(where), tuple(names)))
        return found

    def _network(self, path: Place, data: Any) -> list[Rule]:
        if data != "none":
            self._note(path, f"is {_shown(data)}", "Write network: none, or leave the field out")
        return [rules.NoNetwork(_dotted(path))]

    def _maximum_age(self, path: Place, data: Any) -> list[Rule]:
        found = _AGE.fullmatch(data) if type(data) is str else None
        if found is None:
            self._note(path, f"is {_shown(data)}, no length of time", "For example 90d, 12h or 4w")
            return []
        limit = min(int(found[1]) * _UNITS[found[2]], timedelta(days=36500))
        return [rules.MaximumAge(_dotted(path), limit)]

    def _agent_versions(self, path: Place, data: Any) -> list[Rule]:
        versions = []
        for where, item in self._items(path, data):
            text = self._text(where, item)
            if text is not None and not _VERSION.fullmatch(text):
                self._note(where, f"is {_shown(text)}, no version", "For example 0.2.1 or 0.2.*")
            versions.append(text or "")
        return [rules.AgentVersions(_dotted(path), tuple(versions))]

    def _timestamp(self, path: Place, data: Any) -> list[Rule]:
        fields = self._mapping(path, data, ("authorities", "require")) or {}
        required = fields.get("require", True)
        if type(required) is not bool:
            self._note((*path, "require"), f"is {_shown(required)}", "Write true or false")
        roots = [
            root
            for where, item in self._items((*path, "authorities"), fields.get("authorities", ()))
            for root, _ in self._certificates(where, item)
        ]
        self._authorities += roots
        if not required:
            return []
        prints = tuple(trust.fingerprint(root) for root in roots)
        return [rules.RequiredTimestamp(_dotted(path), prints)]

    def _evaluations(self, path: Place, data: Any) -> list[Rule]:
        found: list[Rule] = []
        for where, item in self._items(path, data):
            fields = self._mapping(where, item, (*_OF_EVALUATIONS, "metrics", "metricsFile"))
            if fields is None:
                continue
            # Whoever chooses one of these chooses the metrics: what the command names may be the
            # model itself, or not be there; and a variable may lead to other code.
            open_ = [key for key in ("images", "command") if key not in fields]
            if "exactly" not in _keys(fields.get("inputs")):
                open_.insert(0, "inputs.exactly")
            if "only" not in _keys(fields.get("environment")):
                open_.append("environment.only")
            if open_:
                what = f"leaves {' and '.join(open_)} to the builder, who could report any metrics"
                self._note(where, what, "Say which benchmark: image, command, each input's target")
            own = [
                rule
                for key in _OF_EVALUATIONS
                if key in fields
                for rule in _RULES[key](self, (*where, key), fields[key])
            ]
            bars = self._bars((*where, "metrics"), fields["metrics"]) if "metrics" in fields else []
            file: str | None = rules.METRICS_FILE
            if "metricsFile" in fields:
                file = self._text((*where, "metricsFile"), fields["metricsFile"])
            rule = rules.RequiredEvaluation(_dotted(where), tuple(own), tuple(bars), file or "")
            found.append(rule)
        return found

    def _bars(self, path: Place, data: Any) -> list[tuple[str, Bar]]:
        bars = []
        for name, item in (self._mapping(path, data, None) or {}).items():
            if (bounds := self._mapping((*path, name), item, ("atLeast", "atMost"))) is None:
                continue
            for bound, value in bounds.items():
                if type(value) not in (int, float) or not -MAX_BAR <= value <= MAX_BAR:
                    self._note((*path, name, bound), f"is {_shown(value)}, not a number")
                    break
            else:
                bars.append((name, Bar(bounds.get("atLeast"), bounds.get("atMost"))))
        return sorted(bars, key=lambda pair: pair[0])

    # -- values ----------------------------------------------------------------------------------

    def _mapping(
        self, path: Place, data: Any, known: Sequence[str] | None, required: Sequence[str] = ()
    ) -> dict[str, Any] | None:
        """Return the known fields of a mapping; `known` is None where any field may be there."""
        if type(data) is not dict:
            names = ", ".join(known or ()) or "NAME: value"
            advice = f"Its fields are: {names}" if path else f"Begin with policy: {FORMAT}"
            self._note(path, f"is {_shown(data)}, not a mapping", advice)
            return None
        if not data and path:
            self._note(path, "is empty", "Leave the field out")
            return None
        for name in data:
            if known is not None and name not in known:
                self._note(
                    (*path, name),
                    "is not a field that is known here",
                    _did_you_mean(name, known),
                    of_key=True,
                )
        for name in required:
            if name not in data:
                self._note(path, f"lacks the field {name}", "Write policy: 1" if not path else None)
        return {name: value for name, value in data.items() if known is None or name in known}

    def _items(self, path: Place, data: Any, *, empty: bool = False) -> list[tuple[Place, Any]]:
        """Return the items of a list with their places; () stands for a list that is not there."""
        if data == ():
            return []
        if type(data) is not list:
            self._note(path, f"is {_shown(data)}, not a list", "Write each item on a line after -")
            return []
        if len(data) > MAX_ITEMS:
            self._note(path, f"has over {MAX_ITEMS} items")
            return []
        if not data and not empty:
            self._note(path, "is an empty list", "Name at least one, or leave the field out")
        return [((*path, index), item) for index, item in enumerate(data)]

    def _text(self, path: Place, data: Any, *, empty: bool = False) -> str | None:
        if type(data) is not str:
            self._note(path, f"is {_shown(data)}, not a text", "Put it in quotes")
            return None
        if len(data) > _MAX_TEXT or not (data or empty):
            self._note(path, "is too long" if data else "is empty")
            return None
        return data

    def _digest(self, path: Place, data: Any) -> str | None:
        text = data if type(data) is str else ""
        if found := _DIGEST.fullmatch(text):
            return found[1]
        advice = "Write its 64 hex digits, with or without sha256: before them"
        if _DIGEST.fullmatch(text.lower()):
            advice = "Write it in lower case"
        elif re.fullmatch("(sha256:)?[0-9a-f]+", text):
            advice = f"It has {len(text.removeprefix('sha256:'))} hex digits and needs 64"
        elif "@sha256:" in text:
            advice = "Write the digest alone; for an image, that of its config (its ID)"
        self._note(path, f"is {_shown(data)}, no SHA-256 digest", advice)
        return None

    def _like(
        self, path: Place, fields: dict[str, Any], pattern: re.Pattern[str], what: str
    ) -> str | None:
        """Return the field that `path` ends in, which must match; None where it is not there."""
        value = fields.get(str(path[-1]))
        if path[-1] not in fields or (type(value) is str and pattern.fullmatch(value)):
            return value
        self._note(path, f"is {_shown(value)}, not {what}")
        return None

    def _target(self, path: Place, fields: dict[str, Any]) -> str | None:
        """Return the target of an input, of the form that the log's grammar has it."""
        text = self._like(path, fields, _TARGET, "a folder below /inputs/")
        try:
            if text is not None:
                manifest.check_path(text.removeprefix("/inputs/"))
        except manifest.PathError as error:
            self._note(path, f"is {_shown(text)}: {error.message}")
        return text

    def _file(self, path: Place, data: Any) -> tuple[Path, str] | None:
        """Return the file that a policy names, and how to show it."""
        text = self._text(path, data)
        if text is None:
            return None
        if self._folder is None:
            self._note(path, "names a file, and this policy was not read from one")
            return None
        if Path(text).is_absolute() or "\0" in text:
            self._note(path, f"is {_shown(text)}", "Write a path relative to the policy's file")
            return None
        return self._folder / text, str(Path(self._source).parent / text)

    def _certificates(self, path: Place, data: Any) -> list[tuple[x509.Certificate, str]]:
        file = self._file(path, data)
        if file is None:
            return []
        try:
            return [(root, file[1]) for root in trust.load_certificates(file[0])]
        except Error as error:
            self._note(path, f"names a file that cannot be used: {_sentence(error)}")
            return []

    def _note(
        self,
        path: Place,
        what: str,
        advice: str | None = None,
        *,
        place: tuple[int, int] | None = None,
        of_key: bool = False,
    ) -> None:
        self._good = False
        place = place or self._marked.place(path, of_key=of_key)
        line, column = place or (None, None)
        self._files.mistakes.append(
            Mistake(self._source, line, column, _dotted(path), what, advice)
        )


_FIELDS = (
    "policy", "name", "description", "extends", "trust", "assurance", "roots", "images",
    "reference", "inputs", "command", "environment", "network", "maximumAge", "agentVersions",
    "timestamp", "evaluations",
)  # fmt: skip

_RULES: dict[str, Callable[[_Reading, Place, Any], list[Rule]]] = {
    "roots": _Reading._roots,
    "images": _Reading._images,
    "reference": _Reading._reference,
    "inputs": _Reading._inputs,
    "command": _Reading._command,
    "environment": _Reading._environment,
    "network": _Reading._network,
    "maximumAge": _Reading._maximum_age,
    "agentVersions": _Reading._agent_versions,
    "timestamp": _Reading._timestamp,
    "evaluations": _Reading._evaluations,
}

_OF_EVALUATIONS = (
    "inputs", "images", "command", "environment", "roots", "maximumAge", "agentVersions",
)  # fmt: skip
"""The rules that can be set for an evaluation by itself."""


def _keys(value: Any) -> set[Any]:
    return set(value) if type(value) is dict else set()


def _is_number(path: Place) -> bool:
    """Tell where a plain scalar in YAML is a number or a truth value; elsewhere it is a text."""
    bound = len(path) == 5 and path[0] == "evaluations" and path[2] == "metrics"
    return bound or path in (("policy",), ("timestamp", "require"))


def _dotted(path: Place) -> str:
    """Return a place as text: `inputs.require[0].uri`."""
    text = ""
    for part in path:
        if type(part) is int:
            text += f"[{part}]"
        else:
            name = str(part)[:80]
            text += f"{'.' if text else ''}{name if name.isprintable() else ascii(name)}"
    return text


def _shown(value: Any) -> str:
    """Return a value as it is shown in a message: short and printable."""
    if value is None:
        return "empty"
    if type(value) in (dict, list):
        return "a mapping" if type(value) is dict else "a list"
    text = repr(value) if type(value) is str else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _did_you_mean(value: Any, known: Sequence[str]) -> str:
    text = value[:100] if type(value) is str else ""
    if close := difflib.get_close_matches(text, known, n=1, cutoff=0.5):
        return f"Did you mean {close[0]}?"
    return f"Known are: {', '.join(known)}"


def _sentence(error: Error) -> str:
    got = "" if error.got is None else f" ({error.got})"
    return f"{error.message}{got}"
