"""Fine-tune the digits model on noisy images, and leave the same ones out as its training did."""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

INPUTS = Path(os.environ.get("AICERT_INPUTS", "inputs"))
OUTPUTS = Path(os.environ.get("AICERT_OUTPUTS", "outputs"))
NOISE = 0.2
"""The standard deviation of the noise; a pixel is within 0 to 1."""
EPOCHS = 10

sys.path.insert(0, str(INPUTS / "code"))
train = importlib.import_module("train")


def main() -> None:
    """Load the base model, train on, and save."""
    torch.manual_seed(int(os.environ.get("AICERT_SEED", "0")))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images, digits = train.load()
    training = torch.randperm(len(images))[360:]

    model = train.make_model()
    model.load_state_dict(load_file(INPUTS / "base" / "model.safetensors"))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    loss_function = nn.CrossEntropyLoss()
    loss = torch.tensor(0.0)
    for epoch in range(1, EPOCHS + 1):
        for batch in training[torch.randperm(len(training))].split(train.BATCH):
            noisy = (images[batch] + NOISE * torch.randn_like(images[batch])).clamp(0, 1)
            optimizer.zero_grad()
            loss = loss_function(model(noisy), digits[batch])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch:3d}/{EPOCHS}  loss {loss.item():.4f}", flush=True)

    OUTPUTS.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), OUTPUTS / "model.safetensors")
    metrics = {"loss": round(loss.item(), 6), "epochs": EPOCHS}
    (OUTPUTS / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
