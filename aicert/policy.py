"""The policy: what a verifier demands of a certificate beyond its being true.

A policy is a value: rules, each of which looks at facts that the verifier has authenticated and
nothing else. Policies compose by adding up: every rule of every part must pass, so a part can only
tighten. Reading policies from files is the work of `aicert.policy_file`; this module decides.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aicert import canonical, evaluation
from aicert.assurance import MEANING, Assurance
from aicert.errors import Error
from aicert.events import Bar, Input, format_time
from aicert.log import Run
from aicert.timestamp import CLOCK_TOLERANCE, TimeBounds
from aicert.uri_pattern import UriPattern

if TYPE_CHECKING:
    from cryptography import x509

    from aicert.reference import BootResult, Reference
    from aicert.trust import Pin, TrustStore

FORMAT = 1
"""The version of the policy format."""

METRICS_FILE = "metrics.json"
"""Where an evaluation writes its metrics, unless a policy names another file."""


# -- errors --------------------------------------------------------------------------------------


class PolicyError(Error):
    """The certificate is true, and not what the policy demands.

    `rule` names the rule that failed, as `file: path.in.file`; `results` holds the outcome of every
    rule of the policy.
    """

    code = "policy.failed"
    remedy = (
        "ask the builder for a certificate that passes, or change the policy if it asks for "
        "too much"
    )
    rule: str = ""
    results: tuple["RuleResult", ...] = ()

    @property
    def failures(self) -> tuple["RuleResult", ...]:
        """All the rules that failed."""
        return tuple(result for result in self.results if result.error is not None)

    def to_json(self) -> dict[str, str]:
        """Return the error as strings, with the rule and the others that failed too."""
        fields = {**super().to_json(), "rule": self.rule}
        if others := [result.rule for result in self.failures if result.rule != self.rule]:
            fields["alsoFailed"] = "; ".join(others)
        return fields

    def diagnostics(self) -> str:
        """Return the error as a few lines for a person, with the rule that failed."""
        lines = [super().diagnostics(), f"  rule:     {self.rule}"]
        lines += [
            f"  also failed: {result.rule}: {result.error.message}"
            for result in self.failures
            if result.error is not None and result.error is not self
        ]
        return "\n".join(lines)


class AssuranceError(PolicyError):
    """The certificate is worth less than the policy asks for."""

    code = "policy.assurance"


class RootError(PolicyError):
    """The policy does not allow the root that vouches for the TPM."""

    code = "policy.roots"


class ImageError(PolicyError):
    """The policy does not allow the container image."""

    code = "policy.images"


class BootError(PolicyError):
    """The boot measurements match none of the policy's reference values."""

    code = "policy.reference"


class InputMissingError(PolicyError):
    """An input that the policy requires was not used."""

    code = "policy.inputs.require"


class InputForbiddenError(PolicyError):
    """An input that the policy forbids was used."""

    code = "policy.inputs.forbid"


class InputNotListedError(PolicyError):
    """An input was used that is not among those that the policy allows."""

    code = "policy.inputs.only"


class InputsDifferError(PolicyError):
    """The inputs are not exactly those that the policy lists, each in its place."""

    code = "policy.inputs.exactly"


class CommandError(PolicyError):
    """The training command is not one that the policy allows."""

    code = "policy.command"


class VariableError(PolicyError):
    """The training's environment is not as the policy demands."""

    code = "policy.environment"


class NetworkError(PolicyError):
    """The training was not cut off from the network."""

    code = "policy.network"


class AgeError(PolicyError):
    """The run is older than the policy allows, or ended in the future."""

    code = "policy.maximum-age"


class AgentVersionError(PolicyError):
    """The policy does not allow the version of the agent."""

    code = "policy.agent-versions"


class TimestampRequiredError(PolicyError):
    """The policy requires a timestamp, and none that counts is there."""

    code = "policy.timestamp"


class EvaluationMissingError(PolicyError):
    """An evaluation that the policy requires was not given, or did not reach what it must."""

    code = "policy.evaluations"


# -- facts and rules -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What the verifier has authenticated about a certificate, and the time by the caller's clock.

    `pin` is the root that the chain ends in; `boot` what the boot measurements show; `times` what
    bounds the time; `now` is in UTC; `evaluations` are the same of evaluations of its model.
    """

    run: Run
    pin: "Pin"
    assurance: Assurance
    boot: "BootResult"
    times: TimeBounds
    now: datetime
    evaluations: tuple["Facts", ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand. `path` is its place in the policy, such as `inputs.require[0]`."""

    path: str

    key: ClassVar[str] = ""
    """The field of the policy that it comes from."""

    def problem(self, facts: Facts) -> PolicyError | None:
        """Return the error where the facts are not as demanded, else None."""
        raise NotImplementedError

    def explain(self) -> str:
        """Say what is demanded, in a sentence for a person."""
        raise NotImplementedError

    def to_json(self) -> Any:
        """Return what is demanded as JSON; two rules that demand the same are equal in it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The outcome of one rule: `rule` names it as `file: path`; `error` is None where it passed."""

    rule: str
    demand: str
    error: PolicyError | None

    @property
    def passed(self) -> bool:
        """Tell whether the rule passed."""
        return self.error is None


@dataclass(frozen=True, slots=True)
class LeastAssurance(Rule):
    """The certificate is worth at least this much."""

    key: ClassVar[str] = "assurance"
    least: Assurance

    def problem(self, facts: Facts) -> PolicyError | None:
        """Compare the assurance."""
        if facts.assurance >= self.least:
            return None
        if facts.assurance is Assurance.SIMULATED:
            advice = (
                "a software TPM is accepted only where you say so, for instance for the demo: pass "
                "--allow-simulated, or write assurance: simulated in the policy"
            )
        elif facts.assurance is Assurance.MEASURED:
            advice = (
                "ask for a run on a confidential machine, whose CPU's report is in the certificate "
                "and names firmware that is known"
            )
        elif self.least >= Assurance.MEASURED and facts.boot.nearest is None:
            advice = (
                "name the image's signed reference values, under reference in the policy or with "
                "--reference; without them no boot is known to be right"
            )
        elif self.least >= Assurance.MEASURED:
            advice = f"the boot is not that of {facts.boot.nearest}; {_boot_problems(facts)}"
        else:
            advice = "ask the builder for a run on a machine with more assurance"
        return AssuranceError(
            "the certificate is worth less than is asked for",
            got=f"{facts.assurance}: {MEANING[facts.assurance]}",
            expected=f"at least {self.least}",
            advice=advice,
        )

    def explain(self) -> str:
        """Say the least assurance."""
        return f"assurance at least {self.least}: {MEANING[self.least]}"

    def to_json(self) -> Any:
        """Return the word."""
        return str(self.least)


@dataclass(frozen=True, slots=True)
class AllowedRoots(Rule):
    """One of these roots vouches for the TPM; `names` are for people."""

    key: ClassVar[str] = "roots"
    fingerprints: tuple[str, ...]
    names: tuple[str, ...] = field(compare=False)

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for the pin's fingerprint."""
        if facts.pin.fingerprint in self.fingerprints:
            return None
        return RootError(
            "the policy does not allow the root that vouches for this TPM",
            got=f"{facts.pin.name} (sha256:{facts.pin.fingerprint})",
            expected=" or ".join(self.names),
            advice="ask the builder for a run on another kind of machine, or add the root to "
            "roots if you trust it",
        )

    def explain(self) -> str:
        """Name the roots."""
        return f"the TPM's root is {' or '.join(self.names)}"

    def to_json(self) -> Any:
        """Return the fingerprints."""
        return sorted(self.fingerprints)


@dataclass(frozen=True, slots=True)
class AllowedImages(Rule):
    """The training's container image has one of these config digests."""

    key: ClassVar[str] = "images"
    configs: tuple[str, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for the config digest."""
        if facts.run.image.config in self.configs:
            return None
        return ImageError(
            "the policy does not allow the container image",
            got=f"sha256:{facts.run.image.config} ({facts.run.image.reference})",
            expected=" or ".join(f"sha256:{config}" for config in self.configs),
            advice="the policy names images by their config digest (in podman and docker: the "
            "image's ID), not by their manifest digest",
        )

    def explain(self) -> str:
        """Name the digests."""
        return f"the container image is {' or '.join(f'sha256:{c}' for c in self.configs)}"

    def to_json(self) -> Any:
        """Return the digests."""
        return sorted(self.configs)


@dataclass(frozen=True, slots=True)
class MatchReference(Rule):
    """The boot matches reference values that one of these keys signed.

    `documents` are the digests (SHA-256 of the file) of the documents allowed, or None for any by
    these signers.
    """

    key: ClassVar[str] = "reference"
    signers: tuple[str, ...]
    documents: tuple[str, ...] | None

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for a match with a document that this rule accepts."""
        if any(self.accepts(match.reference) for match in facts.boot.matches):
            return None
        if facts.boot.matches:
            got = f"the boot is that of {facts.boot.matches[0]}, which this rule does not accept"
        elif facts.boot.nearest is None:
            got = "no reference values were given"
        else:
            got = f"nearest is {facts.boot.nearest}: {_boot_problems(facts)}"
        return BootError(
            "the machine's boot measurements match none of the policy's reference values",
            got=got,
            expected=self.explain(),
            advice="give the reference values of the image that the machine ran, or ask for a run "
            "on an image that you accept",
        )

    def accepts(self, reference: "Reference") -> bool:
        """Tell whether a document is one of those that may decide."""
        listed = self.documents is None or reference.digest in self.documents
        return listed and reference.signer in self.signers

    def explain(self) -> str:
        """Name the signers and the documents."""
        who = " or ".join(f"sha256:{signer}" for signer in self.signers)
        which = ""
        if self.documents is not None:
            which = f", in {' or '.join(f'sha256:{d}' for d in self.documents)}"
        return f"the boot matches reference values signed by the key {who}{which}"

    def to_json(self) -> Any:
        """Return signers and documents."""
        documents = None if self.documents is None else sorted(self.documents)
        return {"signers": sorted(self.signers), "documents": documents}


@dataclass(frozen=True, slots=True)
class InputMatcher:
    """What an input must be like; every part that is given must agree, and one at least is.

    `sha256` is the digest of an input that is one file; `root` that of a tree, over the digests of
    its files; `manifest` that of the manifest, which also covers names and sizes. The first two are
    told apart where something is allowed: a file that holds the digests of a tree's files has the
    tree's root for its SHA-256. `target` is the folder where the training found it.
    """

    uri: UriPattern | None = None
    sha256: str | None = None
    root: str | None = None
    manifest: str | None = None
    git_commit: str | None = None
    name: str | None = None
    target: str | None = None

    def allows(self, item: Input, target: str) -> bool:
        """Tell whether the input, which lay at `target`, is like this, however its URI is read."""
        return (
            self.target in (None, target)
            and self.sha256 in (None, item.sha256)
            and self.root in (None, item.root)
            and self._same(item)
            and (self.uri is None or self.uri.allows(item.uri))
        )

    def forbids(self, item: Input) -> bool:
        """Tell whether the input is like this, by any reading of its digests and of its URIs."""
        digests = (None, item.sha256, item.root)
        return (
            self.sha256 in digests
            and self.root in digests
            and self._same(item)
            and (self.uri is None or self.uri.forbids(item.uri) or self.uri.forbids(item.requested))
        )

    def mistaken(self, inputs: Iterable[Input]) -> str | None:
        """Return advice where `sha256` names a tree by its root; else nothing."""
        if any(item.sha256 is None and item.root == self.sha256 for item in inputs):
            return f"write root: {self.sha256}, if a folder is meant; sha256 is a single file's"
        return None

    def _same(self, item: Input) -> bool:
        return (
            (self.name is None or self.name == item.name)
            and (self.manifest is None or self.manifest == item.manifest)
            and (self.git_commit is None or self.git_commit == item.git_commit)
        )

    def __str__(self) -> str:
        """Return the parts, for people."""
        return ", ".join(f"{name} {value}" for name, value in self.to_json().items())

    def to_json(self) -> dict[str, str]:
        """Return the parts that are given."""
        parts = {
            "name": self.name,
            "uri": None if self.uri is None else str(self.uri),
            "sha256": self.sha256,
            "root": self.root,
            "manifest": self.manifest,
            "gitCommit": self.git_commit,
            "target": self.target,
        }
        return {name: value for name, value in parts.items() if value is not None}


def _placed(run: Run) -> list[tuple[Input, str]]:
    """Return each input with its target, which the log's grammar holds to the container's mounts.

    By name: a rule about an evaluation sees its inputs without the model.
    """
    targets = {item.name: item.target for item in run.job.spec.inputs}
    return [(item, targets[item.name]) for item in run.inputs]


@dataclass(frozen=True, slots=True)
class RequiredInput(Rule):
    """There is an input like this."""

    key: ClassVar[str] = "inputs.require"
    matcher: InputMatcher

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for an input that matches."""
        if any(self.matcher.allows(*placed) for placed in _placed(facts.run)):
            return None
        return InputMissingError(
            "an input that the policy requires was not used",
            got="; ".join(map(_input, _placed(facts.run))) or "no inputs",
            expected=str(self.matcher),
            advice=self.matcher.mistaken(facts.run.inputs)
            or "do not take this model for one that was made from that input",
        )

    def explain(self) -> str:
        """Describe the input."""
        return f"there is an input with {self.matcher}"

    def to_json(self) -> Any:
        """Return the matcher."""
        return self.matcher.to_json()


@dataclass(frozen=True, slots=True)
class ForbiddenInput(Rule):
    """There is no input like this."""

    key: ClassVar[str] = "inputs.forbid"
    matcher: InputMatcher

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for an input that matches."""
        for item, target in _placed(facts.run):
            if self.matcher.forbids(item):
                return InputForbiddenError(
                    "an input that the policy forbids was used",
                    got=_input((item, target)),
                    expected=f"no input with {self.matcher}",
                    advice="do not use this model where the policy applies",
                )
        return None

    def explain(self) -> str:
        """Describe the input."""
        return f"there is no input with {self.matcher}"

    def to_json(self) -> Any:
        """Return the matcher."""
        return self.matcher.to_json()


@dataclass(frozen=True, slots=True)
class OnlyInputs(Rule):
    """Every input is like one of these."""

    key: ClassVar[str] = "inputs.only"
    matchers: tuple[InputMatcher, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for an input that matches none."""
        for item, target in _placed(facts.run):
            if not any(matcher.allows(item, target) for matcher in self.matchers):
                mistaken = filter(None, (matcher.mistaken([item]) for matcher in self.matchers))
                return InputNotListedError(
                    "an input was used that the policy does not list",
                    got=_input((item, target)),
                    expected=" or ".join(f"({matcher})" for matcher in self.matchers),
                    advice=next(mistaken, "list it under inputs.only if you accept it"),
                )
        return None

    def explain(self) -> str:
        """Describe the inputs."""
        return f"every input has {' or '.join(f'({matcher})' for matcher in self.matchers)}"

    def to_json(self) -> Any:
        """Return the matchers."""
        return [matcher.to_json() for matcher in self.matchers]


@dataclass(frozen=True, slots=True)
class ExactInputs(Rule):
    """The inputs are these, all of them and no other, each at its own target.

    What a command runs or reads under /inputs is then what the policy says that lies there.
    """

    key: ClassVar[str] = "inputs.exactly"
    matchers: tuple[InputMatcher, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for one that is missing, lies elsewhere, or is too many."""
        placed = _placed(facts.run)
        left = {target: item for item, target in placed}
        for matcher in self.matchers:
            item = left.pop(matcher.target or "", None)
            if item is None or not matcher.allows(item, matcher.target or ""):
                break
        else:
            if not left:
                return None
        mistaken = filter(None, (m.mistaken(item for item, _ in placed) for m in self.matchers))
        return InputsDifferError(
            "the inputs are not exactly those that the policy lists, each in its place",
            got="; ".join(map(_input, placed)) or "no inputs",
            expected=self.explain(),
            advice=next(mistaken, None),
        )

    def explain(self) -> str:
        """Describe the inputs."""
        return f"the inputs are {' and '.join(f'({m})' for m in self.matchers)}, and no other"

    def to_json(self) -> Any:
        """Return the matchers."""
        return [matcher.to_json() for matcher in self.matchers]


@dataclass(frozen=True, slots=True)
class CommandPattern:
    """A command: exactly these words or, if not `exact`, these first."""

    words: tuple[str, ...]
    exact: bool

    def matches(self, command: tuple[str, ...]) -> bool:
        """Tell whether a command is like this."""
        return (command if self.exact else command[: len(self.words)]) == self.words

    def __str__(self) -> str:
        """Return the words, for people."""
        return f"{list(self.words)}{'' if self.exact else ' and whatever follows'}"


@dataclass(frozen=True, slots=True)
class AllowedCommands(Rule):
    """The training's command is like one of these."""

    key: ClassVar[str] = "command"
    patterns: tuple[CommandPattern, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Compare the command that was started."""
        command = facts.run.start.command
        if any(pattern.matches(command) for pattern in self.patterns):
            return None
        return CommandError(
            "the training command is not one that the policy allows",
            got=list(command),
            expected=" or ".join(map(str, self.patterns)),
        )

    def explain(self) -> str:
        """Show the commands."""
        return f"the training command is {' or '.join(map(str, self.patterns))}"

    def to_json(self) -> Any:
        """Return the words."""
        return [{"equals" if p.exact else "starts": list(p.words)} for p in self.patterns]


@dataclass(frozen=True, slots=True)
class RequiredVariable(Rule):
    """The training was given this variable with this value."""

    key: ClassVar[str] = "environment.require"
    name: str
    value: str

    def problem(self, facts: Facts) -> PolicyError | None:
        """Compare the variable."""
        got = facts.run.start.environment.get(self.name)
        if got == self.value:
            return None
        return VariableError(
            f"the training's variable {self.name} is not as the policy demands",
            got="not set" if got is None else got,
            expected=self.value,
        )

    def explain(self) -> str:
        """Show the variable."""
        return f"the training has the variable {self.name}={self.value}"

    def to_json(self) -> Any:
        """Return name and value."""
        return {self.name: self.value}


@dataclass(frozen=True, slots=True)
class OnlyVariables(Rule):
    """The spec gives the training no variables but these.

    What else it is given is the image's, which the image's digest covers, or the agent's own, which
    the log's grammar holds to their values.
    """

    key: ClassVar[str] = "environment.only"
    names: tuple[str, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for another variable."""
        if extra := sorted(facts.run.job.spec.environment.keys() - set(self.names)):
            return VariableError(
                "the training was given variables that the policy does not list",
                got=", ".join(extra),
                expected=f"{', '.join(self.names) or 'none'}, besides the image's and the agent's",
                advice="a variable can change what a command does; list it under "
                "environment.only if you accept any value of it",
            )
        return None

    def explain(self) -> str:
        """Name the variables."""
        names = ", ".join(self.names) or "none"
        return f"of the training's variables the spec sets only these: {names}"

    def to_json(self) -> Any:
        """Return the names."""
        return sorted(self.names)


@dataclass(frozen=True, slots=True)
class NoNetwork(Rule):
    """The training had no network."""

    key: ClassVar[str] = "network"

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look at how the container was started."""
        if facts.run.start.network == "none":
            return None
        return NetworkError(
            "the training was not cut off from the network",
            got=facts.run.start.network,
            expected="none",
            advice="it may have used data that no certificate names",
        )

    def explain(self) -> str:
        """Say it."""
        return "the training had no network"

    def to_json(self) -> Any:
        """Return the word."""
        return "none"


@dataclass(frozen=True, slots=True)
class MaximumAge(Rule):
    """The run ended at most so long ago, as far as anything shows when it ended."""

    key: ClassVar[str] = "maximumAge"
    limit: timedelta

    def problem(self, facts: Facts) -> PolicyError | None:
        """Compare the least age that is consistent with what is known (`TimeBounds.age`)."""
        age = facts.times.age(facts.now)
        ended = facts.now - age
        if age < -CLOCK_TOLERANCE:
            return AgeError(
                "the run ended in the future",
                got=format_time(ended),
                expected=f"before {format_time(facts.now)}",
                advice="check this machine's clock; if it is right, the run's machine had a wrong "
                "one",
            )
        if age <= self.limit:
            return None
        stamped = facts.times.stamp is not None and ended != facts.times.finished
        clock = "a timestamp" if stamped else "its machine's clock"
        return AgeError(
            "the run is older than the policy allows",
            got=f"{_days(age)} (ended before {format_time(ended)} by {clock})",
            expected=f"at most {_days(self.limit)}",
            advice="ask the builder for a newer certificate",
        )

    def explain(self) -> str:
        """Say the limit."""
        return f"the run ended at most {_days(self.limit)} ago, by its machine's clock"

    def to_json(self) -> Any:
        """Return seconds."""
        return int(self.limit.total_seconds())


@dataclass(frozen=True, slots=True)
class AgentVersions(Rule):
    """The agent's version is one of these; `1.2.*` stands for every version that begins so."""

    key: ClassVar[str] = "agentVersions"
    versions: tuple[str, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Compare the version that the agent measured of itself."""
        got = facts.run.job.agent_version
        for version in self.versions:
            if got == version or (version.endswith(".*") and got.startswith(version[:-1])):
                return None
        return AgentVersionError(
            "the policy does not allow the version of the agent that measured the run",
            got=got,
            expected=" or ".join(self.versions),
        )

    def explain(self) -> str:
        """Name the versions."""
        return f"the agent's version is {' or '.join(self.versions)}, as it says of itself"

    def to_json(self) -> Any:
        """Return the versions."""
        return sorted(self.versions)


@dataclass(frozen=True, slots=True)
class RequiredTimestamp(Rule):
    """A timestamp shows that the signature is older than the end of its key's chain.

    `authorities` are the fingerprints of the roots one of which it must chain to; where there are
    none, any root will do that the caller named.
    """

    key: ClassVar[str] = "timestamp"
    authorities: tuple[str, ...]

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look at the timestamp, if one was checked."""
        times = facts.times
        if times.stamp is None:
            checked = "one that was not checked" if times.unchecked_stamp else "none"
            return TimestampRequiredError(
                "the policy requires a timestamp",
                got=checked,
                expected="a timestamp by an authority that is named",
                advice="name the authority's root certificate, under timestamp.authorities or "
                "with --timestamp-root"
                if times.unchecked_stamp
                else "ask the builder to have the certificate stamped; that can still be done",
            )
        if self.authorities and times.stamp.roots.isdisjoint(self.authorities):
            return TimestampRequiredError(
                "the timestamp is not by an authority that the policy names",
                got=times.stamp.authority,
                expected=" or ".join(f"sha256:{root}" for root in self.authorities),
            )
        if not times.stamped_while_valid:
            return TimestampRequiredError(
                "the timestamp is younger than the attestation key's certificates",
                got=format_time(times.stamp.latest),
                expected=f"before {format_time(times.key_not_after)}",
                advice="it does not show that the run took place while somebody vouched for the "
                "key",
            )
        return None

    def explain(self) -> str:
        """Say what is required."""
        whose = "that you name"
        if self.authorities:
            whose = f"with the root {' or '.join(f'sha256:{root}' for root in self.authorities)}"
        return f"an authority {whose} stamped the statement while its key's chain was valid"

    def to_json(self) -> Any:
        """Return the authorities."""
        return sorted(self.authorities)


@dataclass(frozen=True, slots=True)
class RequiredEvaluation(Rule):
    """An evaluation of the model is certified that follows these rules, with metrics like these.

    It must also have passed the bar that its own spec sets, where it sets one. Its rules look at
    all its inputs but the model, which is bound to the certificate already. The metrics come from
    `file`: the builder's spec names one, and a benchmark may write others that tell of the model.
    """

    key: ClassVar[str] = "evaluations"
    rules: tuple[Rule, ...]
    metrics: tuple[tuple[str, Bar], ...]
    file: str = METRICS_FILE

    def problem(self, facts: Facts) -> PolicyError | None:
        """Look for an evaluation that satisfies all of it."""
        problems = [self._problem(one) for one in facts.evaluations]
        if None in problems:
            return None
        found = zip(facts.evaluations, problems, strict=True)
        return EvaluationMissingError(
            "an evaluation that the policy requires is not there",
            got="; ".join(f"{one.run.job.spec.name}: {problem}" for one, problem in found)
            or "no evaluations were given",
            expected=self.explain(),
            advice="name its certificate with --evaluation, or ask the builder for one",
        )

    def _problem(self, facts: Facts) -> str | None:
        run = facts.run
        came = evaluation.result(run)
        if came is None or came.failed:
            return "it failed" if came else "it is no evaluation"
        if run.job.spec.metrics != self.file:
            return f"its metrics are not from {self.file}, but from {run.job.spec.metrics}"
        _, model = evaluation.model(run)
        others = tuple(item for item in run.inputs if item is not model)
        for rule in self.rules:
            if (error := rule.problem(replace(facts, run=replace(run, inputs=others)))) is not None:
                return error.message
        values = {} if run.end.metrics is None else run.end.metrics.values
        missed = [bar.says(n) for n, bar in self.metrics if not bar.passed(values.get(n))]
        return f"it did not reach {', '.join(missed)}" if missed else None

    def explain(self) -> str:
        """Describe the evaluation."""
        demands = [rule.explain() for rule in self.rules]
        demands += [bar.says(name) for name, bar in self.metrics]
        demands.append(f"the metrics are from {self.file}")
        return f"an evaluation of the model is certified in which: {'; '.join(demands)}"

    def to_json(self) -> Any:
        """Return the rules and the bars."""
        return {
            "rules": [{rule.key: rule.to_json()} for rule in self.rules],
            "metrics": {name: bar.to_json() for name, bar in self.metrics},
            "metricsFile": self.file,
        }


# -- policies ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier demands: rules of its own, and all those of its parts.

    `source` names where it came from. `pins`, `documents` and `authorities` are what the policy's
    files bring along for the checks before it: roots with their worth, signed reference values, and
    roots of timestamp authorities.
    """

    name: str
    source: str
    rules: tuple[Rule, ...]
    parts: tuple["Policy", ...] = ()
    description: str = ""
    pins: tuple["Pin", ...] = ()
    documents: tuple["Reference", ...] = ()
    authorities: tuple["x509.Certificate", ...] = ()

    @classmethod
    def default(cls, least: Assurance = Assurance.HARDWARE) -> "Policy":
        """Return the policy for those who ask for nothing: no software TPM, no network.

        It is what `policies/default.yaml` says, which a test holds.
        """
        rules = (LeastAssurance("assurance", least), NoNetwork("network"))
        return cls("default", "built in", rules)

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a policy, and what it refers to, from a YAML file (or JSON, if so named).

        Raises:
            PolicyFileError: it has mistakes; all of them are named.
        """
        from aicert import policy_file

        return policy_file.load(path)

    @classmethod
    def parse(cls, text: str, source: str = "policy") -> "Policy":
        """Read a policy from YAML or JSON text; it cannot refer to files.

        Raises:
            PolicyFileError: it has mistakes; all of them are named.
        """
        from aicert import policy_file

        return policy_file.parse(text, source)

    @classmethod
    def all_of(cls, policies: Iterable["Policy"]) -> "Policy":
        """Return the policy that demands what each of `policies` does.

        Raises:
            ValueError: there is none: a policy without rules would let everything pass.
        """
        parts = tuple(policies)
        if not parts:
            raise ValueError("no policy was given")
        name = " and ".join(part.name for part in parts)
        return parts[0] if len(parts) == 1 else cls(name, name, (), parts)

    def every(self) -> Iterator["Policy"]:
        """Yield this policy and its parts, at every depth."""
        yield self
        for part in self.parts:
            yield from part.every()

    def of_machines(self, whose: str) -> "Policy":
        """Return what the policy demands of machines and those who vouch for them, and no more.

        That is what holds for certificates besides the one that is verified: evaluations of it, and
        those of its inputs. `whose` says so, as in "of an evaluation".
        """
        kinds = (LeastAssurance, AllowedRoots, MatchReference, RequiredTimestamp)
        rules = [rule for rule in self.rules if isinstance(rule, kinds)]
        return replace(
            self,
            source=f"{self.source}, {whose}",
            rules=(*rules, NoNetwork("network")),
            parts=tuple(part.of_machines(whose) for part in self.parts),
        )

    def check(self, facts: Facts) -> tuple[RuleResult, ...]:
        """Hold the facts against every rule of every part; see `enforce`."""
        results = []
        for policy in self.every():
            for rule in policy.rules:
                error = rule.problem(facts)
                label = f"{policy.source}: {rule.path}"
                if error is not None:
                    error.rule = label
                results.append(RuleResult(label, rule.explain(), error))
        return tuple(results)

    def trust_store(self, base: "TrustStore") -> "TrustStore":
        """Return `base` with the roots that the policy's files bring along.

        Raises:
            TrustError: a root is pinned twice with different worth.
        """
        return base.with_pins(pin for policy in self.every() for pin in policy.pins)

    def references(self, given: Iterable[bytes] = ()) -> tuple["Reference", ...]:
        """Return the reference values that may decide: the policy's, and files given besides.

        Raises:
            ReferenceSignerError: a given one was signed by a key that no rule names.
            Error: (ReferenceValuesError, CanonicalError, KeyFileError) a given one is malformed.
        """
        from aicert import reference

        documents = {d.digest: d for policy in self.every() for d in policy.documents}
        signers = {
            signer
            for policy in self.every()
            for rule in policy.rules
            if isinstance(rule, MatchReference)
            for signer in rule.signers
        }
        for data in given:
            document = reference.parse(data)
            document.require_signer(signers)
            documents[document.digest] = document
        return tuple(documents.values())

    def timestamp_roots(
        self, given: Iterable["x509.Certificate"] = ()
    ) -> tuple["x509.Certificate", ...]:
        """Return the roots of timestamp authorities: the policy's, and those given besides."""
        own = (root for policy in self.every() for root in policy.authorities)
        return tuple(dict.fromkeys([*own, *given]))

    def to_json(self) -> dict[str, Any]:
        """Return what the policy demands, without names, places and descriptions."""
        return {
            "policy": FORMAT,
            "rules": [{rule.key: rule.to_json()} for rule in self.rules],
            "trust": [{"sha256": pin.fingerprint, "assurance": pin.assurance} for pin in self.pins],
            "parts": [part.to_json() for part in self.parts],
        }

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of what the policy demands (`to_json`)."""
        return canonical.sha256(self.to_json())

    def explain(self) -> str:
        """Return what the policy demands, as text for a person."""
        lines = []
        for policy in self.every():
            lines.append(f"{policy.name} ({policy.source})")
            if policy.description:
                lines.append(f"  {policy.description}")
            lines += [
                f"  takes the root {pin.name!r} (sha256:{pin.fingerprint}) as {pin.assurance}"
                for pin in policy.pins
            ]
            lines += [f"  has the reference values of {document}" for document in policy.documents]
            lines += [f"  demands: {rule.explain()}  [{rule.path}]" for rule in policy.rules]
            if policy.parts:
                names = ", ".join(part.name for part in policy.parts)
                lines.append(f"  and all that these demand: {names}")
        text = [*lines, *self._notes()]
        return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in text)

    def _notes(self) -> Iterator[str]:
        """Say what the policy leaves open, and what in it can never pass."""
        rules = [rule for policy in self.every() for rule in policy.rules]
        keys = {rule.key for rule in rules}
        said = {key.partition(".")[0] for key in keys}
        open_ = [
            name
            for name, is_open in (
                ("roots: any that the trust store has", "roots" not in said),
                ("container images", "images" not in said),
                ("the machine's boot", "reference" not in said),
                ("inputs other than those named", not {"inputs.only", "inputs.exactly"} & keys),
                ("commands", "command" not in said),
                ("the training's environment", "environment.only" not in keys),
                ("age", "maximumAge" not in said),
            )
            if is_open
        ]
        if open_:
            yield f"Left open: {'; '.join(open_)}."
        if found := next(_unplaced(rules), None):
            yield (
                f"Note: the command names {found}, and the policy does not say what lies there: "
                "give the input's target, under inputs.require or inputs.exactly."
            )
        least = max((r.least for r in rules if isinstance(r, LeastAssurance)), default=None)
        if least is not None and least >= Assurance.MEASURED and "reference" not in said:
            yield f"Note: nothing gives reference values, so no certificate can be {least}."


def _unplaced(rules: Iterable[Rule]) -> Iterator[str]:
    """Yield what allowed commands name below /inputs, where any input may lie."""
    rules = tuple(rules)
    known = [rule.matcher.target for rule in rules if isinstance(rule, RequiredInput)]
    known += [m.target for rule in rules if isinstance(rule, ExactInputs) for m in rule.matchers]
    folders = [f"{target}/" for target in known if target is not None]
    for rule in rules:
        if isinstance(rule, AllowedCommands):
            for word in (word for pattern in rule.patterns for word in pattern.words):
                _, found, path = word.partition("/inputs/")
                named = f"{found}{path}"
                if found and not any(f"{named}/".startswith(folder) for folder in folders):
                    yield named


def enforce(results: tuple[RuleResult, ...]) -> None:
    """Raise the error of the first rule that failed, if one did.

    Raises:
        PolicyError: (a subclass, whose code names the rule's kind) with `rule` and `results`.
    """
    for result in results:
        if result.error is not None:
            result.error.results = results
            raise result.error


def _input(placed: tuple[Input, str]) -> str:
    item, target = placed
    digest = f"root {item.root}" if item.sha256 is None else f"sha256 {item.sha256}"
    return f"{item.name}: {item.uri} ({digest}) at {target}"


def _boot_problems(facts: Facts) -> str:
    if facts.boot.nearest is None:
        return ""
    return "; ".join(map(str, facts.boot.nearest.problems[:3]))


def _days(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    if hours < 48:
        return f"{hours:.3g} hours"
    return f"{hours / 24:.4g} days"
