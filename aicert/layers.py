"""What was measured, layer by layer: from the firmware through the OS image to the outputs.

It repeats what a verdict holds, in the order in which a machine comes to it; it decides nothing.
"""

from collections.abc import Iterable, Iterator

from aicert.reference import PcrResult
from aicert.verify import Verdict
from aicert.words import clean, count

FIRMWARE = (0, 1)
BOOT = (2, 3, 5, 6, 7)
IMAGE = (4, 9, 10, 11, 12, 13)


def layers(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield each layer's name and what is known of it, in a line for a person."""
    run, boot = verdict.run, verdict.boot
    by_pcr = {result.pcr: result for result in boot.pcrs}

    def held(pcrs: Iterable[int]) -> str:
        return _held(by_pcr[pcr] for pcr in pcrs)

    yield "firmware", held(FIRMWARE)
    yield "boot", held(BOOT)
    image = f"{boot.matches[0]}: " if boot.matches else ""
    yield "OS image", f"{image}{held(IMAGE)}"
    agent = f"aicert {run.job.agent_version}"
    if boot.measured:
        agent += ", which is in the OS image"
    if run.channel_key is not None:
        agent += f"; its channel's key, sha256:{run.channel_key.spki[:16]}…, is in PCR 15"
    yield "agent", agent
    yield "job", f"run {run.job.run}: nonce, baseline and spec are in PCR 14"
    yield "inputs", f"{count(len(run.inputs), 'digest')} in PCR 14"
    yield "training", f"image sha256:{run.image.config[:16]}…, start and end in PCR 14"
    yield "outputs", f"{count(len(run.outputs.manifest.files), 'file')} in PCR 8"


def text(verdict: Verdict) -> str:
    """Return the layers as lines for a terminal."""
    return "\n".join(f"  {name:<8}  {clean(said)}" for name, said in layers(verdict))


def _held(results: Iterable[PcrResult]) -> str:
    """Say what PCRs are judged by, those together that are alike."""
    alike: dict[str, list[int]] = {}
    for result in results:
        alike.setdefault(_judged(result), []).append(result.pcr)
    return "; ".join(
        f"PCR{'s' if len(pcrs) > 1 else ''} {', '.join(map(str, pcrs))} {judged}"
        for judged, pcrs in alike.items()
    )


def _judged(result: PcrResult) -> str:
    if not result.good:
        return "not as published"
    return {
        "value": "as published",
        "events": "made of published events",
        "zero": "zero, as they must be",
        "log": "not constrained, but explained by the log",
        "open": "not constrained",
        "run": "zero when the run began",
    }[result.kind]
