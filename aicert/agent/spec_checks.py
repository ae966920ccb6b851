"""What each value of a training spec must be, and how to say that it is not.

Each check takes what stands in the spec and returns the normalised value, or raises a pydantic
error that says what is wrong, what was found, what was expected and what to do. Nothing that looks
like a secret is accepted, and none is shown in an error.
"""

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlsplit

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from aicert import events, manifest
from aicert.agent.fetch import SCHEMES
from aicert.agent.fetch.errors import SECRET_PARAMETER
from aicert.agent.fetch.source import (
    HUB_URI,
    UNVERSIONED,
    VERSION_NAMES,
    page_advice,
    split_revision,
)
from aicert.agent.oci import SCHEMES as IMAGE_SCHEMES
from aicert.events import RECORD_METHODS

MAX_ITEMS = 256
"""The most inputs, variables and output patterns."""

MAX_ARGUMENTS = 1024
MAX_TEXT = 4096
"""The longest description, URI, image reference and pattern, in UTF-8 bytes."""

MAX_ARGUMENT_BYTES = (128 << 10) - 1
"""The longest argument: Linux' MAX_ARG_STRLEN, less the byte that ends it."""

MAX_VALUE_BYTES = 32 << 10

MAX_SIZE = 1 << 46
MAX_TIME = 366 * 86400
MAX_SEED = 2**32 - 1
"""PYTHONHASHSEED takes no more (CPython, Command line and environment)."""

RESERVED_INPUTS = frozenset({"image", "outputs"})
"""Names that no input may have: they stand for the image's secrets and the outputs' manifest."""

Located = tuple[tuple[str | int, ...], PydanticCustomError]
"""An error, and the place in the spec that it is about."""


def rest(got: str | None, expected: str | None, advice: str | None) -> str:
    """Return how an error's sentence goes on after what is wrong."""
    return "".join(
        part
        for part, value in (
            (f"; got {got}", got),
            (f"; expected {expected}", expected),
            (f". {advice}", advice),
        )
        if value
    )


def wrong(
    what: str,
    *,
    got: object = None,
    expected: str | None = None,
    advice: str | None = None,
    on_key: bool = False,
) -> PydanticCustomError:
    """Make the error for one field; `on_key` where its name and not its value is at fault."""
    context = {"what": what, "expected": expected, "advice": advice, "on_key": on_key}
    context["got"] = None if got is None else shown(got)
    context["text"] = what + rest(context["got"], expected, advice)  # type: ignore[arg-type]
    return PydanticCustomError("spec", "{text}", context)


def did_you_mean(value: object) -> str:
    """Return the advice to write `value` instead; empty where that would be too long to read."""
    text = json.dumps(value, ensure_ascii=False)
    return f"Did you mean {text}?" if len(text) <= 300 else ""


def several(problems: list[Located]) -> ValidationError:
    """Make one error of many; pydantic puts the places below that of the field."""
    details = [InitErrorDetails(type=error, loc=loc, input=None) for loc, error in problems]
    # The input is left out of the error on purpose: it may hold a secret.
    return ValidationError.from_exception_data("spec", details, hide_input=True)


def shown(value: object) -> str:
    """Return a value as an error may show it: short, on one line, without what looks secret."""
    if isinstance(value, str):
        text = json.dumps(mask(value), ensure_ascii=not value.isprintable())
    elif value is None or isinstance(value, bool | int | float):
        text = "nothing" if value is None else json.dumps(value)
    elif isinstance(value, Mapping):
        return "a mapping"
    elif isinstance(value, list | tuple):
        return "a list"
    else:
        return f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:120]}… ({len(text)} characters)"


# -- secrets -------------------------------------------------------------------------------------

_SECRETS_TRAVEL = (
    "The spec is published with the certificate. Take the secret out, treat it as leaked if it was "
    "ever shared, and give it apart: for an input, in the block 'aicert Input Credentials' under "
    "the input's name. The training itself has no network and needs no token"
)

_SECRET_VALUES = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        ("a private key or certificate", r"-----BEGIN [A-Z ]+-----"),
        ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{16,}"),
        ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("a GitHub token", r"\b(?:gh[opusr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
        ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{16,}"),
        ("a Google API key", r"\bAIza[0-9A-Za-z_-]{30,}"),
        ("a Slack token", r"\bxox[a-z]-[A-Za-z0-9-]{10,}"),
        ("an API key", r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}"),
        ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}"),
        ("a shared access signature", r"(?i)(?:[?&;]|\b)(?:sig|x-amz-signature)=[A-Za-z0-9%+/=-]+"),
        ("a storage account key", r"(?i)\b(?:AccountKey|SharedAccessSignature)=[^;\s]+"),
        ("a password in a URL", r"://[^/\s:@?#]*:[^/\s@?#]+@(?!sha256:)"),
        ("an authorization header", r"(?i)\b(?:bearer|basic) +[A-Za-z0-9._~+/=-]{16,}"),
    )
)

_SECRET_NAME = re.compile(
    r"(?:.*_)?(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|PWD|SECRET|CREDENTIALS?|(?:API|PRIVATE)?KEY)|"
    r".*_(?:SECRET|PASSWORD|API_?KEY|ACCESS_KEY)_.*|AWS_(?:ACCESS_KEY_ID|SESSION_TOKEN)|PAT|SAS",
    re.IGNORECASE,
)
# Words of tokenizers, not credentials.
_PLAIN_NAME = re.compile(
    r"(?:.*_)?(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK|STOP|START|END)_TOKEN|PWD", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.\d{1,9})?|true|false", re.IGNORECASE)


def secret_in(text: str) -> str | None:
    """Say which kind of secret `text` seems to hold, or None."""
    return next((what for what, pattern in _SECRET_VALUES if pattern.search(text)), None)


def mask(text: str) -> str:
    """Return `text` with `***` for what looks like a secret."""
    for _, pattern in _SECRET_VALUES:
        text = pattern.sub("***", text)
    # User and password before a host, also where only one of them is given.
    return re.sub(r"(?<=://)[^/\s@?#]*(?=@(?!sha256:))", "***", text)


# -- single values -------------------------------------------------------------------------------


def check_text(
    value: object, *, limit: int = MAX_TEXT, lines: bool = False, empty: bool = False
) -> str:
    """Check what holds for every text; `lines` allows line ends and tabs."""
    if not isinstance(value, str):
        plain = isinstance(value, bool | int | float)
        raise wrong(
            "is not a text",
            got=value,
            expected="a text",
            advice=f"Write it in quotes: {json.dumps(json.dumps(value))}" if plain else None,
        )
    if not value and not empty:
        raise wrong("is empty", advice="Write something there, or leave the field out")
    for character in value:
        if character < " " or not character.isascii() or character == "\x7f":
            category = unicodedata.category(character)
            # Format characters (bidirectional overrides, zero-width spaces) make one text look
            # like another; the two joiners are part of words and emoji.
            if category in ("Cc", "Cf", "Cs", "Zl", "Zp") and not (
                character in "\u200c\u200d" or (lines and character in "\n\t")
            ):
                raise wrong(
                    "has a control or an invisible character",
                    got=f"U+{ord(character):04X}",
                    advice="Remove it",
                )
    if not unicodedata.is_normalized("NFC", value):
        raise wrong(
            "is not in Unicode normal form C",
            advice=did_you_mean(unicodedata.normalize("NFC", value)[:100]),
        )
    if len(value.encode()) > limit:
        raise wrong("is too long", got=f"{len(value.encode())} bytes", expected=f"at most {limit}")
    return value


def check_open_text(
    value: object, *, limit: int = MAX_TEXT, lines: bool = False, empty: bool = False
) -> str:
    """Check a text that is published: it may hold nothing that looks like a secret."""
    text = check_text(value, limit=limit, lines=lines, empty=empty)
    kind = secret_in(text)
    if kind is not None:
        raise wrong(f"holds {kind}", advice=_SECRETS_TRAVEL)
    return text


NAME = r"[a-z0-9][a-z0-9._-]{0,62}"


def check_name(value: object) -> str:
    """Check the name of a spec."""
    text = check_open_text(value)
    if not re.fullmatch(NAME, text):
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        guess = re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("._-")[:63]
        raise wrong(
            "is not a name",
            got=text,
            expected="1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit",
            advice=did_you_mean(guess) if guess else None,
        )
    return text


def check_input_name(value: object) -> str:
    """Check the name of an input, which is also that of a folder and of its manifest."""
    text = check_name(value)
    if text in RESERVED_INPUTS:
        raise wrong("is a reserved name", got=text, advice="Choose another name")
    if text.endswith("."):
        raise wrong("ends in a dot", got=text, advice=did_you_mean(text.rstrip(".")))
    return text


def check_uri(value: object) -> str:
    """Check the URI of an input as far as that goes without fetching it."""
    text = check_text(value)
    scheme, colon, rest = text.partition(":")
    if not colon or "/" in scheme or (len(scheme) == 1 and rest[:1] in ("\\", "/")):
        path = text.removeprefix("./").replace("\\", "/").replace(" ", "%20")
        raise wrong(
            "has no scheme",
            got=text,
            expected="a URI such as file:data/train, https://…, hf://…, git+https://…, s3://…",
            advice=did_you_mean(f"file://{path}" if path.startswith("/") else f"file:{path}"),
        )
    if repository := re.fullmatch(r"(?:ssh://)?git@([^/:]+)[:/](?!\d+/)(.+)", text):
        advice = did_you_mean(f"git+https://{repository[1]}/{repository[2]}")
        raise wrong("is an address of git's over SSH", got=text, advice=advice)
    if scheme not in SCHEMES:
        close = difflib.get_close_matches(scheme.lower(), SCHEMES, 1)
        raise wrong(
            "has an unknown scheme",
            got=scheme,
            expected=f"one of {', '.join(SCHEMES)}",
            advice=did_you_mean(f"{close[0]}:{mask(rest)}") if close else None,
        )
    if any(character.isspace() for character in text):
        raise wrong("has a space", got=text, advice=did_you_mean(mask(text).replace(" ", "%20")))
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise wrong("is not a URI", got=text) from error
    _no_credentials(text, scheme, parts.netloc, parts.query)
    if scheme == "file":
        if not rest.removeprefix("//"):
            raise wrong("names no file", got=text, expected="file:relative/path or file:///path")
        if parts.netloc not in ("", "localhost"):
            path = rest.lstrip("/")
            raise wrong(
                "names a file on another machine",
                got=text,
                advice=f"Write file:{path} for a path beside the spec, file:///{path} otherwise",
            )
    elif scheme != "git+file" and not parts.netloc:
        raise wrong("names no host", got=text, expected=f"{scheme}://…")
    _check_form(text, scheme, parts)
    return text


def _check_form(text: str, scheme: str, parts: SplitResult) -> None:
    """Refuse what fetching would, as far as that can be told from the URI."""
    bare = parts._replace(query="", fragment="").geturl()
    if scheme in ("http", "https"):
        if advice := page_advice(parts):
            raise wrong("is the address of a page", got=text, advice=_capital(advice))
        if parts.fragment:
            advice = did_you_mean(text.partition("#")[0])
            raise wrong("has a fragment, which no server is sent", got=text, advice=advice)
        if name := unquote(parts.path.rpartition("/")[2]):
            try:
                manifest.check_path(name if "/" not in name else "")
            except manifest.PathError as error:
                raise wrong(
                    "ends in what cannot be a file's name",
                    got=name,
                    advice="Rename the file where it is, or have it from an address without that",
                ) from error
    elif scheme == "hf" and not HUB_URI.fullmatch(text):
        raise wrong(
            "is not the address of a model or data set on the Hub",
            got=text,
            expected="hf://owner/name[@revision][/path], hf://datasets/owner/name…",
        )
    elif scheme.startswith("git+") and (
        parts.query or (parts.fragment and [*parse_qs(parts.fragment)] != ["subdirectory"])
    ):
        raise wrong(
            "is not the address of a repository",
            got=text,
            expected=f"{scheme}://host/path[@revision][#subdirectory=path]",
            advice=did_you_mean(bare),
        )
    elif scheme in VERSION_NAMES:
        version = VERSION_NAMES[scheme]
        others = [name for name in parse_qs(parts.query) if name.lower() != version.lower()]
        if others or parts.fragment:
            raise wrong(
                "has more than the address of an object or a prefix",
                got=text,
                expected=f"{scheme}://bucket/key, and at most ?{version}=",
                advice=did_you_mean(bare),
            )


def check_one_revision(uri: str, revision: str) -> PydanticCustomError | None:
    """Tell what is wrong with a revision beside a good URI: the source has none, or it has two."""
    scheme = uri.partition(":")[0]
    if scheme in UNVERSIONED:
        return wrong(
            f"is for other sources: those of {scheme}: have no revisions",
            got=revision,
            advice="Leave it out; to fix the content, give its sha256",
        )
    inside = split_revision(uri)[1]
    if inside is not None and inside != revision:
        return wrong("is another than the URI's", got=revision, advice=did_you_mean(inside))
    return None


def _no_credentials(text: str, scheme: str, netloc: str, query: str) -> None:
    """Refuse a URI with a credential in it, as fetching would, but before anything has started."""
    kind = secret_in(text) or secret_in(unquote(text))
    user = netloc.rpartition("@")[0]
    # Before the @ of an abfs URI stands a container, and "git" is everybody's name.
    plain = scheme in ("abfs", "abfss") or (scheme.startswith("git+") and user == "git")
    if kind is None and user and not (plain and ":" not in user):
        kind = "a user name or password"
    if kind is None:
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
        found = next((name for name in names if SECRET_PARAMETER.fullmatch(name)), None)
        kind = found and f"a credential (the parameter {found!r})"
    if kind is not None:
        raise wrong(f"holds {kind}", advice=_SECRETS_TRAVEL)


def check_sha256(value: object) -> str | None:
    """Check a SHA-256 digest, or None."""
    if value is None:
        return None
    text = check_text(value)
    if not re.fullmatch("[0-9a-f]{64}", text):
        guess = text.lower().removeprefix("sha256:").strip()
        raise wrong(
            "is not a SHA-256 digest",
            got=text,
            expected="64 hex digits, lower case",
            advice=did_you_mean(guess)
            if re.fullmatch("[0-9a-f]{64}", guess)
            else "`aicert hash PATH` prints the one of a file or folder",
        )
    return text


def check_revision(value: object) -> str | None:
    """Check a revision, or None."""
    return None if value is None else check_open_text(value, limit=256)


def check_records(value: object) -> str | None:
    """Check which kind of records an input is to be taken apart into, or None."""
    if value is None:
        return None
    text = check_text(value)
    if text not in RECORD_METHODS:
        close = difflib.get_close_matches(text.lower(), RECORD_METHODS, 1)
        raise wrong(
            "is not a kind of records",
            got=text,
            expected=", ".join(RECORD_METHODS),
            advice=did_you_mean(close[0]) if close else None,
        )
    return text


def check_target(value: object) -> str:
    """Check where an input is mounted; empty where the name decides."""
    if value is None or value == "":
        return ""
    text = check_text(value, limit=manifest.MAX_PATH)
    if not text.startswith("/inputs/") or text == "/inputs/":
        guess = "/inputs/" + text.strip("/").removeprefix("inputs").lstrip("/")
        raise wrong(
            "does not lie below /inputs",
            got=text,
            expected="an absolute path such as /inputs/data",
            advice=did_you_mean(guess) if guess != "/inputs/" and ".." not in guess else None,
        )
    _path(text.removeprefix("/inputs/"), text, "/inputs/")
    return text


def _path(path: str, text: str, prefix: str = "") -> None:
    """Refuse what is no plain relative path; `text` is what stands in the spec."""
    try:
        manifest.check_path(path)
    except manifest.PathError as error:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        guess = prefix + "/".join(parts)
        raise wrong(
            error.message.replace("a file's path", "is a path that"),
            got=text,
            advice=did_you_mean(guess) if parts and ".." not in parts and guess != text else None,
        ) from error


def check_metrics(value: object) -> str | None:
    """Check the path of the metrics file, or None."""
    if value is None:
        return None
    text = check_open_text(value, limit=manifest.MAX_PATH)
    if text.startswith("/"):
        raise wrong(
            "is absolute",
            got=text,
            expected="a path below /outputs, such as metrics.json",
            advice=did_you_mean(text.removeprefix("/outputs/").lstrip("/")),
        )
    _path(text, text)
    return text


def check_pattern(value: object) -> str:
    """Check an output pattern."""
    text = check_open_text(value)
    guess = None
    if text.startswith("/"):
        problem, guess = "is absolute", text.removeprefix("/outputs").lstrip("/") or "**"
    elif text.endswith("/"):
        problem, guess = "names a folder, and patterns name files", f"{text.rstrip('/')}/**"
    elif text.startswith("!"):
        problem = "excludes, and patterns only include"
    elif re.search(r"[\[\]{}\\]", text):
        # Taken literally such a pattern would match nothing, after hours of training.
        problem = "has one of [ ] { } \\, which are no wildcards here"
    elif any("**" in part and part != "**" for part in text.split("/")):
        problem, guess = "has ** beside other characters", text.replace("**", "*")
    else:
        _path(re.sub(r"[*?]", "x", text), text)
        return text
    raise wrong(
        problem,
        got=text,
        expected="a path below /outputs; * and ? stand for characters of one name, ** for folders",
        advice=did_you_mean(guess) if guess else None,
    )


_HOST = r"(?:[A-Za-z0-9.-]+(?::\d+)?/|\[[0-9a-f:]+\](?::\d+)?/)"
_REPOSITORY = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<name>{_HOST}?{_REPOSITORY}(?:/{_REPOSITORY})*)"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_FIND_DIGEST = (
    "A tag can be moved, a digest cannot. To find it: `skopeo inspect --format '{{.Digest}}' "
    "docker://NAME:TAG`, or pull the image and read `podman image inspect --format "
    "'{{index .RepoDigests 0}}' NAME:TAG`; then write docker://NAME@sha256:…"
)


def check_image(value: object) -> str:
    """Check an image reference."""
    text = check_open_text(value)
    scheme, colon, rest = text.partition(":")
    if scheme not in IMAGE_SCHEMES or not colon:
        bare = re.sub(r"^[a-z]+://", "", text)
        if "@" in bare and _REFERENCE.fullmatch(bare):
            raise wrong("lacks its scheme", got=text, advice=did_you_mean(f"docker://{bare}"))
        close = difflib.get_close_matches(scheme.lower(), IMAGE_SCHEMES, 1)
        raise wrong(
            "has no known scheme",
            got=text,
            expected="oci:PATH[:TAG], oci-archive:PATH, docker-archive:PATH, "
            "docker://NAME@sha256:…, containers-storage:NAME or docker-daemon:NAME",
            advice=did_you_mean(f"{close[0]}:{rest}")
            if close and rest
            else "A name in a registry is written docker://NAME@sha256:…, one in this machine's "
            "own store containers-storage:NAME (podman) or docker-daemon:NAME",
        )
    if any(character.isspace() for character in text) or not rest:
        raise wrong(
            "names no image" if not rest else "has a space",
            got=text,
            expected="a name or a path without spaces",
            advice="For a path with a space, put a link to it beside the spec" if rest else None,
        )
    if scheme in ("oci", "oci-archive", "docker-archive"):
        if rest.startswith("//"):
            raise wrong(
                "has slashes that do not belong there",
                got=text,
                expected=f"{scheme}:PATH",
                advice=did_you_mean(f"{scheme}:/{rest.lstrip('/')}"),
            )
        return text
    if scheme == "docker":
        if not rest.startswith("//"):
            raise wrong("lacks the slashes", got=text, advice=did_you_mean(f"docker://{rest}"))
        rest = rest.removeprefix("//")
    match = _REFERENCE.fullmatch(rest)
    if match is None:
        upper = _REFERENCE.fullmatch(rest.lower())
        digest = rest.rpartition("@sha256:")[2]
        raise wrong(
            "is not an image reference"
            if len(digest) in (64, len(rest))
            else f"has a digest of {len(digest)} characters",
            got=text,
            expected="[HOST[:PORT]/]NAME, in lower case, then :TAG or @sha256: and 64 hex digits",
            advice=did_you_mean(f"{scheme}:{'//' * (scheme == 'docker')}{rest.lower()}")
            if upper
            else None,
        )
    if scheme == "docker" and match["digest"] is None:
        raise wrong("has no digest", got=text, advice=_FIND_DIGEST)
    if match["tag"] and match["digest"]:
        prefix = "docker://" if scheme == "docker" else f"{scheme}:"
        raise wrong(
            "has both a tag and a digest",
            got=text,
            expected="the digest alone, which says more",
            advice=did_you_mean(f"{prefix}{match['name']}{match['digest']}"),
        )
    return text


# -- lists and mappings --------------------------------------------------------------------------


def check_list(value: object, *, high: int, low: int = 0) -> object:
    """Check that this is a list of `low` to `high` items."""
    if not isinstance(value, list | tuple):
        single = isinstance(value, str | Mapping)
        raise wrong(
            "is not a list",
            got=value,
            expected="a list",
            advice=did_you_mean([mask(value)]) if isinstance(value, str) else
            "Put '- ' before it, to make it the first item of a list" if single else None,
        )  # fmt: skip
    if not low <= len(value) <= high:
        wanted = f"{low} to {high} items"
        raise wrong("has the wrong number of items", got=len(value), expected=wanted)
    return value


def check_command(value: object) -> object:
    """Check that the command is a list that begins with a program; then item by item."""
    if isinstance(value, str):
        words = mask(value).split()
        raise wrong(
            "is not a list",
            got=value,
            expected="the program and its arguments, as a list: no shell takes a text apart",
            advice=did_you_mean(words) if 0 < len(words) <= 20 else None,
        )
    found = check_list(value, low=1, high=MAX_ARGUMENTS)
    assert isinstance(found, list | tuple)
    program = found[0]
    if isinstance(program, str) and (not program or any(map(str.isspace, program))):
        words = mask(program).split() + [mask(item) for item in found[1:] if isinstance(item, str)]
        advice = did_you_mean(words) if 0 < len(words) <= 20 else None
        problem = wrong(
            "is no program",
            got=program,
            expected="the program alone: a path in the image, or a name on its PATH, no spaces",
            advice=advice,
        )
        raise several([((0,), problem)])
    return found


def check_outputs(value: object) -> object:
    """Check the list of output patterns; its items are checked one by one."""
    found = check_list(value, low=1, high=MAX_ITEMS)
    assert isinstance(found, list | tuple)
    twice = [
        ((index,), wrong("stands twice", got=item, advice="Remove one of the two"))
        for index, item in enumerate(found)
        if isinstance(item, str) and item in found[:index]
    ]
    if twice:
        raise several(twice)  # type: ignore[arg-type]
    return value


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

_SET_BY_US = {
    "HOME": "it is /tmp, the one folder that is the training's own",
    "PYTHONHASHSEED": "it is the spec's seed: set 'seed'",
    "LD_PRELOAD": "it would put code into every program that the command does not show",
    "LD_AUDIT": "it would put code into every program that the command does not show",
    "NVIDIA_VISIBLE_DEVICES": "the engine itself obeys it: set 'limits.gpus'",
    "NVIDIA_DRIVER_CAPABILITIES": "the engine itself obeys it: set 'limits.gpus'",
}


def check_environment(value: object) -> object:
    """Check the variables one by one, so that every mistake in them is named.

    Refused are the names that the container contract sets itself, for a spec that says otherwise
    would be untrue, and the few that change what runs without showing in the command.
    """
    if not isinstance(value, Mapping):
        raise wrong("is not a mapping", got=value, expected="NAME: value")
    if len(value) > MAX_ITEMS:
        raise wrong("has too many entries", got=len(value), expected=f"at most {MAX_ITEMS}")
    problems: list[Located] = []
    for name, item in value.items():
        where = (name if isinstance(name, str) else str(name),)
        try:
            _variable(name, item)
        except PydanticCustomError as error:
            problems.append((where, error))
    if problems:
        raise several(problems)
    return dict(value)


def _variable(name: object, value: object) -> None:
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        raise wrong(
            "is not the name of a variable",
            got=name,
            expected="letters, digits and '_', the first not a digit",
            on_key=True,
        )
    upper = name.upper()
    if upper.startswith("AICERT_"):
        raise wrong("is set by aicert", advice="Choose another name", on_key=True)
    if upper in _SET_BY_US:
        raise wrong("may not be set", advice=_capital(_SET_BY_US[upper]), on_key=True)
    if value is None:
        raise wrong("has no value", advice='For an empty one, write ""')
    text = check_open_text(value, limit=MAX_VALUE_BYTES, lines=True, empty=True)
    if (
        text
        and _SECRET_NAME.fullmatch(name)
        and not _PLAIN_NAME.fullmatch(name)
        and not _NUMBER.fullmatch(text)
    ):
        raise wrong(
            "has the name of a secret",
            advice=f"{_SECRETS_TRAVEL}. If it is no secret, give it another name",
            on_key=True,
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- limits --------------------------------------------------------------------------------------

_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SIZE_PATTERN = r"^\d{1,15}(\.\d{1,6})? ?([KMGT]iB|[kKMGT]?B)?$"
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([A-Za-z]*)", re.ASCII)


def read_size(value: object, *, low: int) -> int:
    """Read a size: an integer of bytes, or a text such as '2GiB'."""
    count: int | None = None
    advice = None
    if type(value) is int:
        count = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        number, unit = match.groups()
        factor = _UNITS.get(unit or "B")
        if factor is None:
            units = [u for u in _UNITS if u[0].lower() == unit[0].lower() and u != "B"]
            exact = [u for u in units if u.lower() == unit.lower()]
            if units:
                advice = did_you_mean(f"{number}{(exact or units)[0]}")
        else:
            exactly = Decimal(number) * factor
            if exactly != int(exactly):
                raise wrong("is not a whole number of bytes", got=value)
            count = int(exactly)
    if count is None:
        raise wrong(
            "is not a size",
            got=value,
            expected="bytes, or a number with KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, "
            "TB (powers of 1000)",
            advice=advice,
        )
    if not low <= count <= MAX_SIZE:
        bare = isinstance(value, int) or (isinstance(value, str) and value.isdigit())
        raise wrong(
            "is too small" if count < low else "is too large",
            got=f"{count} bytes",
            expected=f"{_binary(low)} to {_binary(MAX_SIZE)}",
            advice=did_you_mean(f"{count}GiB") if bare and 0 < count <= 1024 else None,
        )
    return count


def _binary(count: int) -> str:
    unit = max((u for u in ("B", "KiB", "MiB", "GiB", "TiB") if count >= _UNITS[u]), key=_UNITS.get)  # type: ignore[arg-type]
    return f"{count // _UNITS[unit]}{unit}"


_SECONDS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
DURATION_PATTERN = r"^\d{1,11}$|^\d[\d.dhmins ]*$"
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([A-Za-z]+)", re.ASCII)


_PARTS = re.compile(f"{_PART.pattern}(?: ?{_PART.pattern})*", re.ASCII)


def read_duration(value: object) -> int:
    """Read a duration: an integer of seconds, or a text such as '1h30m'."""
    seconds: Decimal | None = None
    advice = None
    if type(value) is int or (
        isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12
    ):
        seconds = Decimal(value)
    elif isinstance(value, str) and len(value) <= 64 and _PARTS.fullmatch(value):
        parts = _PART.findall(value)
        units = [_SECONDS.get(unit) for _, unit in parts]
        if None in units:
            words = {"d": "d", "h": "h", "m": "min", "s": "s"}
            guess = "".join(f"{number}{words.get(unit[0].lower(), '?')}" for number, unit in parts)
            advice = None if "?" in guess else did_you_mean(guess)
        elif units != sorted(set(units), reverse=True):  # type: ignore[type-var]
            advice = "Write the larger unit first, and each one once"
        else:
            seconds = sum(
                (Decimal(number) * _SECONDS[unit] for number, unit in parts), start=Decimal(0)
            )
            if seconds != int(seconds):
                raise wrong("is not a whole number of seconds", got=value)
    if seconds is None:
        raise wrong(
            "is not a duration",
            got=value,
            expected="seconds, or numbers with d, h, min (or m) and s, such as 90s, 10min, 1h30m",
            advice=advice,
        )
    if not 1 <= seconds <= MAX_TIME:
        raise wrong(
            "is out of range", got=f"{seconds} seconds", expected=f"1 second to {MAX_TIME} seconds"
        )
    return int(seconds)


def check_integer(value: object, *, low: int, high: int) -> int:
    """Check an integer within [low, high]."""
    if type(value) is not int:
        text = isinstance(value, str) and re.fullmatch(r"-?\d{1,15}", value)
        raise wrong(
            "is not an integer",
            got=value,
            expected=f"an integer from {low} to {high}",
            advice=did_you_mean(int(value)) if text else None,  # type: ignore[call-overload]
        )
    if not low <= value <= high:
        raise wrong("is out of range", got=value, expected=f"{low} to {high}")
    return value


def check_cpus(value: object) -> float:
    """Check a number of processor cores."""
    # An integer and a float that are equal have one canonical form (RFC 8785, 3.2.2.3).
    if type(value) not in (int, float):
        text = isinstance(value, str) and re.fullmatch(r"\d{1,4}(?:\.\d{1,3})?", value)
        raise wrong(
            "is not a number",
            got=value,
            expected="a number such as 4 or 1.5",
            advice=did_you_mean(float(value)) if text else None,  # type: ignore[arg-type]
        )
    if not 0.1 <= value <= 1024:  # type: ignore[operator]
        raise wrong("is out of range", got=value, expected="0.1 to 1024")
    number = float(value)  # type: ignore[arg-type]
    if round(number, 3) != number:
        raise wrong(
            "has more than three decimals",
            got=value,
            advice=did_you_mean(round(number, 3)),
        )
    return number


def check_bound(value: object) -> float | None:
    """Check a bound on a metric, or None."""
    if value is None:
        return None
    if type(value) not in (int, float):
        raise wrong("is not a number", got=value, expected="a number such as 0.95")
    if not -events.MAX_BAR <= value <= events.MAX_BAR:  # type: ignore[operator]
        raise wrong("is out of range", got=value, expected=f"at most {events.MAX_BAR:g}")
    return float(value)  # type: ignore[arg-type]


def check_bar(value: object) -> object:
    """Check the names of the metrics that must reach something."""
    if not isinstance(value, Mapping):
        raise wrong("is not a mapping", got=value, expected="METRIC: {atLeast: NUMBER}")
    if len(value) > MAX_ITEMS:
        raise wrong("has too many entries", got=len(value), expected=f"at most {MAX_ITEMS}")
    for name, bound in value.items():
        if events.metrics_problem({name: 0} if isinstance(name, str) else {"": []}):
            raise wrong(
                "holds what is not the name of a metric",
                got=name,
                expected="a text of 1 to 128 characters, all of which print",
            )
        check_open_text(name, limit=512)
        if type(bound) in (int, float):
            problem = wrong(
                "says neither at least nor at most",
                got=bound,
                advice=did_you_mean({"atLeast": bound}),
            )
            raise several([((str(name),), problem)])
    return dict(value)
