"""Run the example's training and a loader-heavy one, and write down how long each loop took.

It knows the same three variables as any training. The clock is read inside the process: what a
container costs before and after it is measured elsewhere. Beside the clock stands the processor's
time, its own and that of the workers that have ended, which other programs on the machine disturb
less.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

INPUTS = Path(os.environ["AICERT_INPUTS"])
OUTPUTS = Path(os.environ["AICERT_OUTPUTS"])


class Files(Dataset):  # type: ignore[misc]
    """Small files, each opened and read anew whenever it is asked for."""

    def __init__(self) -> None:
        self.paths = sorted((INPUTS / "files").rglob("*.bin"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        data = bytearray(self.paths[number].read_bytes())
        return torch.frombuffer(data, dtype=torch.uint8)[:1024].float() / 255


def loader_heavy(epochs: int) -> None:
    """Read every file once an epoch, with two worker processes, and learn next to nothing."""
    model = nn.Linear(1024, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for batch in DataLoader(Files(), batch_size=64, num_workers=2):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()


def now() -> dict[str, float]:
    """Return seconds by the clock, seconds of the processor, and page faults, each until now."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "wall": time.perf_counter(),
        "user": sum(usage.ru_utime for usage in found),
        "system": sum(usage.ru_stime for usage in found),
        "faults": sum(usage.ru_minflt + usage.ru_majflt for usage in found),
    }


def main() -> None:
    """Time both loops."""
    sys.path.insert(0, str(INPUTS / "code"))
    import train  # type: ignore[import-not-found]

    imported = now()
    for _ in range(int(os.environ["TRAININGS"])):
        train.main()
    trained = now()
    loader_heavy(int(os.environ["LOADER_EPOCHS"]))
    loaded = now()
    took = {"import": imported["wall"] - STARTED, "process": loaded["wall"] - STARTED}
    for name, start, end in (("loop", imported, trained), ("loader", trained, loaded)):
        took |= {f"{name} {what}": end[what] - start[what] for what in end}
    (OUTPUTS / "seconds.json").write_text(json.dumps(took))


if __name__ == "__main__":
    main()
