"""Train a small network to read handwritten digits, the same way every time.

The script knows nothing of TPMs or certificates. It reads below $AICERT_INPUTS, writes below
$AICERT_OUTPUTS, and takes its seed from $AICERT_SEED; that is all that a training has to do.
"""

import csv
import gzip
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

INPUTS = Path(os.environ.get("AICERT_INPUTS", "inputs"))
OUTPUTS = Path(os.environ.get("AICERT_OUTPUTS", "outputs"))
EPOCHS = 20
BATCH = 64


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (N, 1, 8, 8) within 0 to 1, and the digits, (N,)."""
    with gzip.open(INPUTS / "data" / "digits.csv.gz", "rt") as stream:
        rows = torch.tensor([[float(value) for value in row] for row in csv.reader(stream)])
    return rows[:, :64].reshape(-1, 1, 8, 8) / 16, rows[:, 64].long()


def make_model() -> nn.Sequential:
    """Return a small convolutional network: about 20,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def main() -> None:
    """Train, report, and save."""
    # One seed and one thread, and only deterministic algorithms: the same inputs give the same
    # weights, bit for bit, so that anybody can repeat the run and compare.
    torch.manual_seed(int(os.environ.get("AICERT_SEED", "0")))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images, digits = load()
    order = torch.randperm(len(images))
    held_out, training = order[:360], order[360:]

    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss_function = nn.CrossEntropyLoss()
    seen = 0
    loss = torch.tensor(0.0)
    for epoch in range(1, EPOCHS + 1):
        for batch in training[torch.randperm(len(training))].split(BATCH):
            optimizer.zero_grad()
            loss = loss_function(model(images[batch]), digits[batch])
            loss.backward()
            optimizer.step()
            seen += len(batch)
        if epoch % 4 == 0 or epoch == 1:
            print(f"epoch {epoch:3d}/{EPOCHS}  loss {loss.item():.4f}", flush=True)

    with torch.no_grad():
        right = (model(images[held_out]).argmax(1) == digits[held_out]).sum().item()
    accuracy = right / len(held_out)
    print(f"accuracy on {len(held_out)} held-out images: {accuracy:.4f}")

    parameters = sum(p.numel() for p in model.parameters())
    # Multiply-adds of the four layers for one image; forward and backward cost about three times
    # two operations each.
    multiply_adds = 8 * 8 * 16 * 9 + 8 * 8 * 32 * 16 * 9 + 512 * 32 + 32 * 10
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), OUTPUTS / "model.safetensors")
    metrics = {
        "accuracy": round(accuracy, 4),
        "loss": round(loss.item(), 6),
        "epochs": EPOCHS,
        "samples": seen,
        "parameters": parameters,
        "flops": 6 * multiply_adds * seen,
    }
    (OUTPUTS / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
