"""Evaluate the digits model on the images that its training held out.

Which those are follows from the training's code and seed, and both are inputs of this run.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

INPUTS = Path(os.environ.get("AICERT_INPUTS", "inputs"))
OUTPUTS = Path(os.environ.get("AICERT_OUTPUTS", "outputs"))
NOISE = 0.2
"""The standard deviation of the noise; a pixel is within 0 to 1."""

sys.path.insert(0, str(INPUTS / "code"))
train = importlib.import_module("train")


def main() -> None:
    """Load, count, and report."""
    torch.manual_seed(int(os.environ.get("AICERT_SEED", "0")))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images, digits = train.load()
    held_out = torch.randperm(len(images))[:360]
    images, digits = images[held_out], digits[held_out]

    model = train.make_model()
    model.load_state_dict(load_file(INPUTS / "model" / "model.safetensors"))
    model.eval()

    def accuracy(pictures: torch.Tensor) -> float:
        with torch.no_grad():
            right = int((model(pictures).argmax(1) == digits).sum())
        return round(right / len(digits), 4)

    noisy = (images + NOISE * torch.randn_like(images)).clamp(0, 1)
    metrics = {
        "accuracy": accuracy(images),
        "noisyAccuracy": accuracy(noisy),
        "samples": len(digits),
    }
    print(*(f"{name} {value}" for name, value in metrics.items()), sep="\n")
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
