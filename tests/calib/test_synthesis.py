from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from _helpers.calib_cases import (
    CPU,
    PIXEL_SCALE,
    PREPROCESSING,
    no_advance,
    pixels,
    synthesis,
)
from _helpers.tiny_students import tiny_vit
from PIL import Image
from scipy.special import log_softmax
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.synthesis.augmentation import SynthesisAugmentation
from mimiq_calib.synthesis.dead_leaves import dead_leaves
from mimiq_calib.synthesis.mimiq import SynthesisedBatch, synthesise_batch
from mimiq_calib.synthesis.preview import write_preview
from mimiq_calib.synthesis.sources import ShardRequest, make_shard, steps_of_shard
from mimiq_runtime.errors import DatasetError, ImageError, InvalidInputError
from mimiq_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mimiq_calib.recipe import SynthesisSettings

C1, C2 = 0.01**2, 0.03**2
RUN = {"batch_size": 4, "num_classes": 10, "device": CPU, "advance": no_advance}


def teacher(**arguments: Any) -> nn.Module:
    return expose_attention(tiny_vit(**arguments))


def synthesise(
    model: nn.Module, settings: SynthesisSettings, *, seed: int = 0, **others: Any
) -> SynthesisedBatch:
    generator = torch.Generator().manual_seed(seed)
    return synthesise_batch(model, settings, PREPROCESSING, generator=generator, **(RUN | others))


def test_images_are_pixels_and_labels_are_classes() -> None:
    batch = synthesise(teacher(), synthesis(), num_classes=3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.float().std() > 20, "they are no plain surface"
    assert batch.labels.dtype == torch.int64
    assert set(batch.labels.tolist()) <= {0, 1, 2}


def test_the_same_for_the_same_seed() -> None:
    model = teacher()
    first, again, other = (synthesise(model, synthesis(flip=True), seed=s) for s in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.metrics == again.metrics
    assert not torch.equal(first.images, other.images)


def test_start_from_dead_leaves() -> None:
    """With a learning rate of next to nothing the images stay what they began as."""
    still = {"learning_rate": 1e-9, "final_learning_rate": 0.0, "weight_decay": 0.0}
    model = teacher()
    batch = synthesise(model, synthesis(start="dead-leaves", **still), seed=1)
    drawn = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(batch.images, dead_leaves(4, (3, 32, 32), seed=drawn))
    other = synthesise(model, synthesis(start="dead-leaves", **still), seed=2)
    assert not torch.equal(batch.images, other.images)
    noise = synthesise(model, synthesis(**still), seed=1)
    # Neighbours in noise are strangers; in a picture of shapes they are often the same.
    assert neighbours_apart(noise.images) > 1.3 * neighbours_apart(batch.images)


def test_the_drawing_of_the_start_is_told_and_is_no_step() -> None:
    told: list[tuple[int, str]] = []
    settings = synthesis(start="dead-leaves", iterations=2)
    synthesise(
        teacher(), settings, batch_size=2, advance=lambda steps, note: told.append((steps, note))
    )
    assert told[:2] == [(0, "start 1 of 2"), (0, "start 2 of 2")]
    assert [steps for steps, _ in told[2:]] == [1, 1]


def test_dead_leaves_move_as_noise_does() -> None:
    model = teacher()
    still = synthesise(model, synthesis(start="dead-leaves", learning_rate=1e-9), seed=1)
    moved = synthesise(model, synthesis(start="dead-leaves"), seed=1)
    assert torch.equal(moved.labels, still.labels)
    assert not torch.equal(moved.images, still.images)
    assert moved.metrics[-1]["loss"] < moved.metrics[0]["loss"]


def neighbours_apart(images: torch.Tensor) -> float:
    return float(images.float().diff(dim=-1).abs().mean())


def test_the_teacher_is_left_as_it_was() -> None:
    model = teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synthesise(model, synthesis())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ((x - x.min()) / (x.max() - x.min() + 1e-8) for x in (a, b))
    covariance = np.mean(a * b) - a.mean() * b.mean()
    return float(
        (2 * a.mean() * b.mean() + C1)
        * (2 * covariance + C2)
        / ((a.mean() ** 2 + b.mean() ** 2 + C1) * (a.var() + b.var() + C2))
    )


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [({}, 1), ({"name": "deit_tiny_distilled_patch16_224"}, 2), ({"reg_tokens": 2}, 3)],
    ids=["vit", "distilled", "registers"],
)
def test_losses_of_step_0_equal_a_slow_recomputation(arguments: dict, prefix: int) -> None:
    model, timm_model = teacher(**dict(arguments)), tiny_vit(**dict(arguments))
    settings = synthesis(head_similarity_weight=0.7, class_weight=1.3, total_variation_weight=0.01)
    batch = synthesise(model, settings, seed=3)
    reported = batch.metrics[0]

    # The same draws in the same order: images, labels, then the augmentation.
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (4,), generator=generator)
    augment = SynthesisAugmentation((32, 32), 2, jitter=None, flip=False, generator=generator)
    augmented = augment(images, 0)

    # timm's own model, and the logits from the outputs of its qkv layers.
    outputs: list[np.ndarray] = []
    for block in timm_model.blocks:
        block.attn.qkv.register_forward_hook(
            lambda _m, _i, output: outputs.append(output.detach().double().numpy())
        )
    with torch.no_grad():
        class_logits = timm_model(augmented).double().numpy()
    layers, alike = [], []
    for qkv in outputs:
        count, tokens, _ = qkv.shape
        q, k, _ = qkv.reshape(count, tokens, 3, 3, 16).transpose(2, 0, 3, 1, 4)
        maps = (q @ k.transpose(0, 1, 3, 2))[:, :, prefix:, prefix:]
        losses, similarities = [], []
        for image, query, i, j in np.ndindex(count, tokens - prefix, 3, 3):
            value = slow_ssim(maps[image, i, query], maps[image, j, query])
            losses.append(1 - value**2)
            if i != j:
                similarities.append(value)
        layers.append(np.mean(losses))
        alike.append(np.mean(similarities))
    classes = -log_softmax(class_logits, axis=1)[np.arange(4), labels.numpy()].mean()
    x = images.double().numpy()
    ways = [
        x[..., 1:] - x[..., :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., :-1, 1:] - x[..., 1:, :-1],
    ]
    norms = [np.sqrt((way**2).sum()) for way in ways]
    variation = norms[0] + norms[1] + (norms[2] + norms[3]) / np.sqrt(2)

    assert batch.labels.tolist() == labels.tolist()
    assert reported["step"] == 0
    assert reported["inter_head"] == pytest.approx(np.mean(layers), rel=1e-4)
    assert reported["head_similarity"] == pytest.approx(np.mean(alike), rel=1e-3, abs=1e-5)
    assert reported["cross_entropy"] == pytest.approx(classes, rel=1e-4)
    assert reported["total_variation"] == pytest.approx(variation, rel=1e-5)
    expected = 0.7 * np.mean(layers) + 1.3 * classes + 0.01 * variation
    assert reported["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "component"),
    [
        ((1.0, 0.0, 0.0), "inter_head"),
        ((0.0, 1.0, 0.0), "cross_entropy"),
        ((0.0, 0.0, 1.0), "total_variation"),
    ],
)
def test_each_component_goes_down(weights: tuple[float, float, float], component: str) -> None:
    names = ("head_similarity_weight", "class_weight", "total_variation_weight")
    settings = synthesis(iterations=40, jitter=0, **dict(zip(names, weights, strict=True)))
    metrics = synthesise(teacher(), settings, seed=1).metrics
    values = [record[component] for record in metrics]
    # Contrast and offset are drawn anew at every step: averages of some steps.
    assert np.mean(values[-3:]) < 0.97 * np.mean(values[:3]), values
    if component == "inter_head":
        similarities = [record["head_similarity"] for record in metrics]
        assert np.mean(similarities[-3:]) != np.mean(similarities[:3])


@pytest.mark.parametrize(
    ("iterations", "steps"), [(1, [0]), (3, [0, 1, 2]), (25, [*range(0, 25, 2)])]
)
def test_metrics_and_progress(iterations: int, steps: list[int]) -> None:
    advanced: list[int] = []
    batch = synthesise(
        teacher(),
        synthesis(iterations=iterations),
        advance=lambda count, note: advanced.append(count + 0 * len(note)),
        batch_size=1,
    )
    assert [record["step"] for record in batch.metrics] == steps
    assert sum(advanced) == iterations == steps_of_shard(synthesis(iterations=iterations))


def test_images_stay_within_real_pixels_while_they_are_made() -> None:
    seen: list[torch.Tensor] = []
    weights = {"head_similarity_weight": 0.0, "class_weight": 0.0}
    settings = synthesis(iterations=6, learning_rate=50.0, weight_decay=0.0, **weights)
    model = teacher()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    synthesise(model, settings)
    # Steps of 50 a pixel; the contrast of exp(1) at most and the offset leave less than 15.
    assert seen[0].abs().max() > 1
    assert max(float(x.detach().abs().max()) for x in seen[1:]) < 15


def test_nan_is_an_error_that_says_what_to_do() -> None:
    model = teacher()
    model.blocks[0].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match=r"diverged at step 0.*learning_rate"):
        synthesise(model, synthesis())


def test_bfloat16_gives_images_too() -> None:
    batch = synthesise(teacher(), synthesis(precision="bf16"))
    exact = synthesise(teacher(), synthesis())
    assert batch.metrics[0]["inter_head"] == pytest.approx(exact.metrics[0]["inter_head"], rel=0.02)
    assert batch.metrics[0] != exact.metrics[0]


def test_one_channel() -> None:
    preprocessing = Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    batch = synthesise_batch(
        teacher(in_chans=1),
        synthesis(),
        preprocessing,
        generator=torch.Generator().manual_seed(0),
        **RUN,
    )
    assert batch.images.shape == (4, 1, 32, 32)


def shard(
    settings: SynthesisSettings,
    first: int = 0,
    size: int = 4,
    seed: int = 0,
    preprocessing: Preprocessing = PREPROCESSING,
    **others: Any,
) -> SynthesisedBatch:
    request = ShardRequest(first, size, torch.Generator().manual_seed(seed))
    arguments = {"num_classes": 10, "device": CPU, "advance": no_advance} | others
    return make_shard(teacher(), settings, preprocessing, request, **arguments)


def test_mimiq_source_is_the_synthesis() -> None:
    settings = synthesis()
    assert torch.equal(
        shard(settings, seed=5).images, synthesise(teacher(), settings, seed=5).images
    )


def test_noise_source() -> None:
    settings = synthesis(source="noise", iterations=77)
    advanced: list[int] = []
    batch = shard(settings, size=64, advance=lambda count, _note: advanced.append(count))
    assert advanced == [1] == [steps_of_shard(settings)]
    assert batch.images.shape == (64, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [-1] * 64
    # A standard normal in normalised space, cut off at black and white.
    normalised = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(batch.images))
    assert float(normalised.median()) == pytest.approx(0.0, abs=0.02)
    quarter = float(normalised.flatten()[::7].quantile(0.25))
    assert quarter == pytest.approx(-0.674, abs=0.03)
    assert torch.equal(shard(settings, size=64).images, batch.images)
    assert not torch.equal(shard(settings, size=64, seed=1).images, batch.images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six flat pictures by name, one in a sub-folder, beside things that are no pictures."""
    for number in range(6):
        place = tmp_path / ("sub" if number == 5 else ".")
        place.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (number * 40, 10, 200)).save(place / f"p{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._p0.png").write_bytes(b"AppleDouble")
    (tmp_path / "album.png").mkdir()
    return tmp_path


def test_folder_source(folder: Path) -> None:
    settings = synthesis(source="folder", folder=str(folder))
    first, second = shard(settings), shard(settings, first=4, size=2)
    reds = torch.cat([first.images, second.images])[:, 0, 16, 16].tolist()
    assert reds == [0, 40, 80, 120, 160, 200]
    assert first.images.dtype == torch.uint8
    assert first.labels.tolist() == [-1] * 4
    assert first.metrics == []
    gray = Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    assert shard(settings, preprocessing=gray).images.shape == (4, 1, 32, 32)


def test_too_few_pictures(folder: Path, tmp_path: Path) -> None:
    settings = synthesis(source="folder", folder=str(folder))
    with pytest.raises(DatasetError, match=r"at least 8 pictures.*has 6"):
        shard(settings, first=4, size=4)
    with pytest.raises(DatasetError, match="nowhere, which is not there"):
        shard(synthesis(source="folder", folder=str(tmp_path / "nowhere")))


def test_a_damaged_picture_is_named(folder: Path) -> None:
    (folder / "p1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"p1\.png"):
        shard(synthesis(source="folder", folder=str(folder)))


class _Run:
    """As much of a run directory as the preview needs."""

    def __init__(self, root: Path, shards: dict[str, torch.Tensor]) -> None:
        self.root, self.shards, self.recorded = root, shards, []

    def read_tensors(self, relative: str, *, made_by: str) -> dict[str, np.ndarray]:
        assert made_by
        return {"images": self.shards[relative].numpy()}

    @contextlib.contextmanager
    def replacing(self, relative: str) -> Iterator[Path]:
        (self.root / relative).parent.mkdir()
        yield self.root / relative
        self.recorded.append(relative)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2), (50, 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_preview(tmp_path: Path, count: int, rows: int, channels: int) -> None:
    images = pixels(count, channels=channels)
    run = _Run(tmp_path, {"a": images[:5], "b": images[5:]})
    write_preview(run, ["a", "b"] if count > 5 else ["a"])  # type: ignore[arg-type]
    assert run.recorded == ["images/preview.png"]
    canvas = np.asarray(Image.open(tmp_path / "images/preview.png"))
    columns = min(count, 8)
    assert canvas.shape[:2] == (rows * 34 + 2, columns * 34 + 2)
    shown = min(count, 32)
    for number in range(shown):
        top, left = 2 + 34 * (number // 8), 2 + 34 * (number % 8)
        cell = canvas[top : top + 32, left : left + 32]
        expected = images[number].numpy().transpose(1, 2, 0)
        if channels != 3:
            expected = np.rint(expected.astype(np.float64).mean(axis=-1)).astype(np.uint8)
        np.testing.assert_array_equal(cell, expected)
