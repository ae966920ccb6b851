"""The base of every error that aicert raises on purpose.

An error is part of the interface: it has a stable code for programs, says what was found and
what was expected, and tells a person what to do next. Each module defines its own subclasses,
one for each way to fail, with the advice that always holds.
"""

from typing import ClassVar

_SHOWN = 400


def install(extra: str) -> str:
    """Return the advice to install an extra, which is from a checkout.

    Never from an index by name: there, the name belongs to somebody else's project.
    """
    return f"in a checkout of aicert, run: pip install '.[{extra}]'"


class Error(Exception):
    """Something is wrong, with a stable code and advice.

    `got` and `expected` are shown as text and cut to a bounded length, because they may come from
    an attacker's file.
    """

    code: ClassVar[str] = "error"
    remedy: ClassVar[str | None] = None
    """The advice where nothing better is known than the kind of error."""

    def __init__(
        self,
        message: str,
        *,
        got: object = None,
        expected: object = None,
        advice: str | None = None,
    ) -> None:
        """Hold the message and, where they help, what was found, what was expected, advice."""
        message = _one_way(message)
        super().__init__(message)
        self.message = message
        self.got = None if got is None else _shown(got)
        self.expected = None if expected is None else _shown(expected)
        advice = self.remedy if advice is None else advice
        self.advice = None if advice is None else _one_way(advice)

    def to_json(self) -> dict[str, str]:
        """Return the error as strings: code and message, and got, expected, advice where set."""
        fields = {
            "code": self.code,
            "message": self.message,
            "got": self.got,
            "expected": self.expected,
            "advice": self.advice,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def diagnostics(self) -> str:
        """Return the error as a few lines for a person at a terminal."""
        lines = [f"{self.message}  [{self.code}]"]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.got is not None:
            lines.append(f"  got:      {self.got}")
        if self.advice is not None:
            lines.append(f"  what to do: {self.advice}")
        return "\n".join(line.replace("\n", "\n    ") for line in lines)


class AbsentError(Error):
    """What a check needs cannot be had, so nothing was checked, and nothing was found wrong."""


class InternalError(Error):
    """A mistake in aicert itself, not in what it was given."""

    code = "internal"
    remedy = "report it as a mistake in aicert, with the file if you may"


def _one_way(message: str) -> str:
    """Return a message whose every character prints, but for the ends of its lines.

    A message may quote a name from an attacker's file, and a terminal obeys what it is shown.
    """
    lines = message.split("\n")
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in lines)


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
