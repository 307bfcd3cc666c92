"""Train the demo model: `python -m mimiq_deploy.demo.train`.

Writes the weights and, beside them under the same name, the JSON description that the demo
loads the model by.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from mimiq_deploy.demo.digits import IMAGE_SIZE, NUM_CLASSES, load_digits_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_OUTPUT = Path(__file__).with_name("digits_vit.safetensors")
DEFAULT_EPOCHS = 90
DEFAULT_SEED = 0

MODEL = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
}
MEAN = 0.5
STD = 0.5
PAPER = (0.0 - MEAN) / STD  # a blank pixel, normalised

# Chosen on a validation part cut from the training images; the held-out third had no say.
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 1e-3
WARMUP_EPOCHS = 5
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
DROP_PATH = 0.05
MAX_GRAD_NORM = 1.0

# Mild on purpose: stronger movement won nothing on the validation part.
MAX_ROTATION = 0.2  # radians
MAX_SHIFT = 0.08  # of the image's side
MAX_SCALE = 0.1  # scales lie in 1 - MAX_SCALE .. 1 + MAX_SCALE

# How float sums are split over threads changes their last bits, so the count is part of the
# recipe, not left to the machine. The model is so small that a second thread gains next to nothing.
NUM_THREADS = 1


def train(images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Module:
    """Train the demo model from random weights.

    Args:
        images: Normalised training images, `(N, 1, 32, 32)`.
        labels: Class indices, `(N,)`.
        epochs: Passes over the training images; the last one's weights are returned.
        seed: Fixes the initial weights, the order of the images and the augmentation.

    Returns:
        The trained model, in evaluation mode.
    """
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(
        MODEL, pretrained=False, num_classes=NUM_CLASSES, drop_path_rate=DROP_PATH, **MODEL_ARGS
    )
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=PEAK_LEARNING_RATE)
    steps = epochs * math.ceil(len(images) / BATCH_SIZE)
    warmup = WARMUP_EPOCHS * steps // max(epochs, WARMUP_EPOCHS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, warmup, steps)
    )
    model.train()
    for epoch in range(epochs):
        losses = []
        for batch in torch.split(torch.randperm(len(images)), BATCH_SIZE):
            logits = model(augment(images[batch]))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        click.echo(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}")
    return model.eval()


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift every image of a batch by its own random amounts.

    Args:
        images: Normalised images, `(N, 1, H, W)`.

    Returns:
        The moved images, `(N, 1, H, W)`; what moves in from outside is bare paper.
    """
    angle = _uniform(len(images), MAX_ROTATION)
    scale = 1 + _uniform(len(images), MAX_SCALE)
    # affine_grid measures in half sides (an image spans -1..1), hence the factor 2.
    shift_x, shift_y = _uniform(len(images), 2 * MAX_SHIFT), _uniform(len(images), 2 * MAX_SHIFT)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    affine = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    # grid_sample fills with 0, so paper has to be 0 while it works.
    return F.grid_sample(images - PAPER, grid, align_corners=False) + PAPER


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Measure the share of images classified correctly.

    Args:
        model: A classifier in evaluation mode.
        images: Normalised images, `(N, 1, 32, 32)`.
        labels: Class indices, `(N,)`.

    Returns:
        The accuracy, 0..1.
    """
    with torch.inference_mode():
        correct: Tensor = model(images).argmax(dim=1) == labels
    return correct.double().mean().item()


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Turn grayscale images into the model's input.

    Args:
        images: `(N, H, W)`, 0..255.

    Returns:
        `(N, 1, H, W)` float32, -1..1.
    """
    return (torch.from_numpy(images).unsqueeze(1).float() / 255 - MEAN) / STD


def description(held_out_accuracy: float) -> dict[str, Any]:
    """Describe the trained model as the demo loads it: how to create it and how to feed it.

    Args:
        held_out_accuracy: Accuracy on the held-out third, 0..1.

    Returns:
        A JSON-serialisable description.
    """
    return {
        "model": MODEL,
        "model_args": MODEL_ARGS,
        "num_classes": NUM_CLASSES,
        "preprocessing": {
            "mean": [MEAN],
            "std": [STD],
            "input_size": [1, IMAGE_SIZE, IMAGE_SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "labels": [str(digit) for digit in range(NUM_CLASSES)],
        "held_out_accuracy": round(held_out_accuracy, 4),
        "trained_with": "python -m mimiq_deploy.demo.train",
    }


@click.command()
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=DEFAULT_EPOCHS,
    show_default=True,
    help="Passes over the training images.",
)
@click.option(
    "--seed",
    type=int,
    default=DEFAULT_SEED,
    show_default=True,
    help="Fixes weights, order and augmentation.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_OUTPUT,
    help="Weights file to write; its description goes beside it, as .json.  "
    "[default: the demo's own]",
)
def main(epochs: int, seed: int, output: Path) -> None:
    """Train the demo model on handwritten digits and write its weights."""
    output.parent.mkdir(parents=True, exist_ok=True)  # now, not after minutes of training
    torch.set_num_threads(NUM_THREADS)
    split = load_digits_split()
    train_images, train_labels = normalise(split.train_images), torch.from_numpy(split.train_labels)
    test_images, test_labels = normalise(split.test_images), torch.from_numpy(split.test_labels)

    start = time.perf_counter()
    model = train(train_images, train_labels, epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start

    held_out = accuracy(model, test_images, test_labels)
    # Not save_file: it makes the file readable by its owner alone, whatever the umask.
    output.write_bytes(save(model.state_dict()))
    output.with_suffix(".json").write_text(
        json.dumps(description(held_out), indent=2) + "\n", encoding="utf-8"
    )
    click.echo(f"train accuracy    {accuracy(model, train_images, train_labels):.4f}")
    click.echo(f"held-out accuracy {held_out:.4f}")
    click.echo(f"trained in {seconds:.0f} s; wrote {output}")


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the parameters into those that decay, the weight matrices, and all others."""
    parameters = dict(model.named_parameters())
    spared = {name for name, p in parameters.items() if p.ndim <= 1}
    spared |= {"cls_token", "pos_embed"}
    return [
        {
            "params": [p for name, p in parameters.items() if name not in spared],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": [p for name, p in parameters.items() if name in spared], "weight_decay": 0.0},
    ]


def _learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Rise linearly over `warmup` steps, then fall to zero along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _uniform(count: int, bound: float) -> Tensor:
    """Draw `count` values uniformly from -bound..bound."""
    return (torch.rand(count) * 2 - 1) * bound


if __name__ == "__main__":
    main()
