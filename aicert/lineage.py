"""The lineage of a run: the certificates of its inputs, and of theirs, each of them verified.

A link is in the measured spec, and names a certificate by its digest (`aicert.links`). So nothing
here decides what a link leads to; it only looks for a file with that digest, in places that are not
believed. A circle would take a digest that is known before what it is the digest of.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aicert import download, links
from aicert.assurance import Assurance
from aicert.certificate import MAX_BYTES, Certificate
from aicert.errors import AbsentError, Error
from aicert.verify import Verdict
from aicert.words import clean, count

MAX_CERTIFICATES = 256
"""The most certificates that are followed from one."""

MAX_DEPTH = 32
"""How many links may lead from one to the next."""

_MAX_LISTED = 10_000

Verifier = Callable[[bytes], Verdict]
Find = Callable[[str], bytes | None]


class MissingError(AbsentError):
    """A certificate that an input is linked to is in none of the places."""

    code = "lineage.missing"
    remedy = "name the file, folder or store that has it with --from"


class RefusedError(Error):
    """The certificate of an input does not verify."""

    code = "lineage.refused"
    remedy = "do not believe where that input is from"


class TooLargeError(Error):
    """The lineage has more certificates, or longer chains of them, than are followed."""

    code = "lineage.too-large"
    remedy = "verify the certificates of the inputs one by one"


@dataclass(frozen=True, slots=True)
class Edge:
    """An input with a certificate: its `name` in the spec, and where the link leads.

    `node` is None where the certificate was not found, and that was allowed.
    """

    name: str
    certificate: str
    node: "Node | None"


@dataclass(frozen=True, slots=True)
class Node:
    """A verified certificate and the links of its run, in the order of the spec."""

    verdict: Verdict
    edges: tuple[Edge, ...]

    @property
    def name(self) -> str:
        """What links call it."""
        return links.name(self.verdict.certificate)

    def every(self) -> "dict[str, Node]":
        """Return this node and all behind it, once each, by what links call them."""
        found: dict[str, Node] = {}

        def add(node: Node) -> None:
            if node.name not in found:
                found[node.name] = node
                for edge in node.edges:
                    if edge.node is not None:
                        add(edge.node)

        add(self)
        return found

    def missing(self) -> tuple[Edge, ...]:
        """Return the links behind this node that lead nowhere."""
        return tuple(
            edge for node in self.every().values() for edge in node.edges if edge.node is None
        )

    @property
    def weakest(self) -> Assurance:
        """The least assurance of this node and all behind it."""
        return min(node.verdict.assurance for node in self.every().values())


def trace(verdict: Verdict, find: Find, verify: Verifier, *, partial: bool = False) -> Node:
    """Follow the links of a verified certificate, verify each one, and check that it fits.

    Args:
        verdict: of the certificate to start from.
        find: returns the file that a link names, or None. It is not believed.
        verify: verifies a file as a certificate of an input.
        partial: put up with links that lead nowhere; `Node.missing` names them.

    Raises:
        MissingError: a certificate is not found.
        RefusedError: one does not verify; the message names the reason's code.
        LinkError: one is not what the link names, or the input is not what it certifies.
        TooLargeError: there are too many of them.
    """
    begun: set[str] = set()
    known: dict[str, Node] = {}

    def follow(verdict: Verdict, path: tuple[str, ...]) -> Node:
        name = links.name(verdict.certificate)
        if name in known:
            return known[name]
        begun.add(name)
        if len(path) > MAX_DEPTH or len(begun) > MAX_CERTIFICATES:
            raise TooLargeError(
                "the lineage is larger than what is followed",
                got=clean(" <- ".join(path), 500),
                expected=f"at most {MAX_CERTIFICATES} certificates, {MAX_DEPTH} in a chain",
            )
        edges = tuple(_edge(link, (*path, link.input.name)) for link in links.links(verdict.run))
        known[name] = Node(verdict, edges)
        return known[name]

    def _edge(link: links.Link, path: tuple[str, ...]) -> Edge:
        node = known.get(link.certificate)
        if node is None:
            data = find(link.certificate)
            if data is None:
                if partial:
                    return Edge(link.input.name, link.certificate, None)
                raise MissingError(
                    f"the certificate of the input {clean(' <- '.join(path), 500)} is not there",
                    got="no file with that digest in the places looked at",
                    expected=f"sha256:{link.certificate}",
                    advice="name the file, folder or store that has it with --from; "
                    "`aicert lineage` draws what is there",
                )
            try:
                found = verify(data)
            except Error as error:
                raise RefusedError(
                    f"the certificate of the input {clean(' <- '.join(path), 500)} is refused: "
                    f"{error.message} [{error.code}]",
                    got=error.got,
                    expected=error.expected,
                    advice=error.advice,
                ) from error
        else:
            found = node.verdict
        links.check(link, found.certificate, found.run)
        return Edge(link.input.name, link.certificate, follow(found, path))

    return follow(verdict, ())


def said_by(verdict: Verdict, node: Node) -> Verdict:
    """Return the verdict with what its lineage adds to what is proved, and what it leaves open."""
    behind = len(node.every()) - 1
    if not behind:
        return verdict
    proved = [
        f"the input {edge.name} is what {_short(edge.node)} certifies"
        for edge in node.edges
        if edge.node is not None
    ]
    proved.append(
        f"its lineage holds: {count(behind, 'certificate')} behind it verified, "
        f"and the weakest of all is worth {node.weakest}"
    )
    unchecked = links.unchecked(verdict.run)
    return replace(
        verdict,
        proved=(*verdict.proved, *proved),
        not_proved=tuple(line for line in verdict.not_proved if line != unchecked),
    )


# -- places ----------------------------------------------------------------------------------------


class Places:
    """Files, folders and stores to look for certificates in, by what links call them."""

    def __init__(self, places: Iterable[str]) -> None:
        """Take paths, and https:// addresses of certificates in a store.

        Raises:
            OSError: a file cannot be read.
            Error: a file that was named is no certificate.
        """
        self._folders: list[Path] = []
        self._stores: list[str] = []
        self._files: dict[str, bytes] = {}
        for place in places:
            if place.startswith("https://"):
                head, found, _ = place.partition("/certificates/")
                if not found:
                    data = download.certificate(place)
                    self._files[links.name(Certificate.parse(data))] = data
                self._stores.append(head.rstrip("/"))
            elif Path(place).is_dir():
                self._folders.append(Path(place))
            else:
                data = _read(Path(place))
                self._files[links.name(Certificate.parse(data))] = data

    @classmethod
    def beside(cls, certificate: str) -> "Places":
        """Return the store that a certificate is in, going by its path or address."""
        places = cls([])
        if certificate.startswith("https://"):
            head, found, _ = certificate.partition("/certificates/")
            if found:
                places._stores.append(head)
        elif certificate not in ("-", "") and not certificate.startswith("hf://"):
            folder = Path(certificate).absolute().parent
            places._folders += [folder, folder.parent]
        return places

    def __add__(self, other: "Places") -> "Places":
        """Return both; these first."""
        both = Places([])
        both._folders = self._folders + other._folders
        both._stores = self._stores + other._stores
        both._files = other._files | self._files
        return both

    def find(self, digest: str) -> bytes | None:
        """Return a certificate by what links call it, or None; it is not verified.

        Raises:
            DownloadError: a store cannot be asked.
        """
        if digest in self._files:
            return self._files[digest]
        for folder in self._folders:
            for name in (
                f"certificates/{digest}/certificate.json",
                f"{digest}/certificate.json",
                f"{digest}.json",
            ):
                if (folder / name).is_file():
                    return _read(folder / name)
        for folder in self._folders:
            for path in _listed(folder):
                try:
                    data = _read(path)
                    if links.name(Certificate.parse(data)) == digest:
                        return data
                except (Error, OSError):
                    continue  # some other file
        for store in self._stores:
            try:
                return download.certificate(f"{store}/certificates/{digest}/certificate.json")
            except download.DownloadError as error:
                if error.status != 404:
                    raise
        return None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _listed(folder: Path) -> Iterator[Path]:
    """Yield the JSON files of a folder itself, not of those in it."""
    found = sorted(folder.glob("*.json"))[:_MAX_LISTED]
    yield from (path for path in found if path.is_file())


# -- drawings --------------------------------------------------------------------------------------


def tree(node: Node) -> str:
    """Draw it for a terminal: each certificate once in full, its inputs below it."""
    lines: list[str] = []
    drawn: set[str] = set()

    def draw(node: Node, lead: str, what: str) -> None:
        again = node.name in drawn
        drawn.add(node.name)
        lines.append(f"{what}{_title(node)}{'  (drawn above)' if again and node.edges else ''}")
        if again:
            return
        linked = {edge.name: edge for edge in node.edges}
        inputs = node.verdict.run.inputs
        for number, item in enumerate(inputs):
            last = number == len(inputs) - 1
            branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
            edge = linked.get(item.name)
            head = f"{lead}{branch}{clean(item.name)}"
            if edge is None:
                lines.append(f"{head}  {clean(item.uri, 100)}  sha256:{item.content_digest[:16]}…")
            elif edge.node is None:
                lines.append(f"{head} ← MISSING  certificate sha256:{edge.certificate}")
            else:
                draw(edge.node, lead + deeper, f"{head} ← ")

    draw(node, "", "")
    for one in node.verdict.evaluations:
        lines.append(f"evaluated by {clean(one.run.job.spec.name)}  {one.assurance}")
    return "\n".join(lines)


def mermaid(node: Node) -> str:
    """Draw it as a Mermaid flowchart, as many sites show in Markdown."""
    nodes = node.every()
    ids = {name: f"c{number}" for number, name in enumerate(nodes)}
    lines = ["flowchart BT"]
    for name, one in nodes.items():
        title = re.sub(r"[^a-zA-Z0-9._-]", "", one.verdict.run.job.spec.name)
        lines.append(f'  {ids[name]}["{title}<br>{one.verdict.assurance}<br>{name[:12]}"]')
    for name, one in nodes.items():
        for edge in one.edges:
            end = ids[edge.node.name] if edge.node else f"m{edge.certificate[:12]}"
            if edge.node is None:
                lines.append(f'  {end}["missing<br>{edge.certificate[:12]}"]')
            lines.append(f"  {end} -->|{edge.name}| {ids[name]}")
    return "\n".join(lines)


def to_json(node: Node) -> dict[str, Any]:
    """Return it for programs: every certificate once, and the links."""
    return {
        "weakest": str(node.weakest),
        "certificates": [
            {
                "name": one.verdict.run.job.spec.name,
                "link": {"sha256": name},
                "certificate": {"sha256": one.verdict.certificate_digest},
                "assurance": str(one.verdict.assurance),
                "inputs": [
                    {"name": edge.name, "link": {"sha256": edge.certificate},
                     "found": edge.node is not None}
                    for edge in one.edges
                ],
            }
            for name, one in node.every().items()
        ],
    }  # fmt: skip


def _short(node: Node) -> str:
    return f"{clean(node.verdict.run.job.spec.name)} (sha256:{node.name[:16]}…)"


def _title(node: Node) -> str:
    name = clean(node.verdict.run.job.spec.name)
    return f"{name}  {node.verdict.assurance}  certificate sha256:{node.name}"
