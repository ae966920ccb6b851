"""Run the example's training and a loader-heavy one, and write down how long each loop took.

It knows the same three variables as any training. The clock is read inside the process: what a
container costs before and after it is measured elsewhere.
"""

import json
import os
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


def main() -> None:
    """Time both loops."""
    sys.path.insert(0, str(INPUTS / "code"))
    import train  # type: ignore[import-not-found]

    imported = time.perf_counter()
    train.main()
    trained = time.perf_counter()
    loader_heavy(int(os.environ["LOADER_EPOCHS"]))
    loaded = time.perf_counter()
    seconds = {
        "import": imported - STARTED,
        "loop": trained - imported,
        "loader": loaded - trained,
        "process": loaded - STARTED,
    }
    (OUTPUTS / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
