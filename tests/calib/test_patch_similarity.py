"""PSAQ-ViT's synthesis as a whole; its loss has a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from _helpers.calib_cases import CPU, PREPROCESSING, no_advance, synthesis
from _helpers.tiny_students import tiny_swin, tiny_vit
from scipy.integrate import trapezoid
from scipy.special import log_softmax
from scipy.stats import gaussian_kde
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.synthesis.sources import ShardRequest, make_shard, steps_of_shard
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_calib.synthesis.optimisation import SynthesisedBatch


def settings(iterations: int = 2, **chosen: Any) -> SynthesisSettings:
    return synthesis(source="patch-similarity", iterations=iterations, patch_similarity=chosen)


def shard(
    chosen: SynthesisSettings, *, seed: int = 0, size: int = 4, model: nn.Module | None = None
) -> SynthesisedBatch:
    return make_shard(
        model or expose_attention(tiny_vit()),
        chosen,
        PREPROCESSING,
        ShardRequest(0, size, torch.Generator().manual_seed(seed)),
        num_classes=10,
        device=CPU,
        advance=no_advance,
    )


def test_images_labels_and_progress() -> None:
    advanced: list[int] = []
    chosen = settings(iterations=7)
    batch = make_shard(
        expose_attention(tiny_vit()),
        chosen,
        PREPROCESSING,
        ShardRequest(0, 4, torch.Generator().manual_seed(0)),
        num_classes=3,
        device=CPU,
        advance=lambda count, note: advanced.append(count if "entropy" in note else 0),
    )
    assert sum(advanced) == 7 == steps_of_shard(chosen)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.float().std() > 20, "they are no plain surface"
    assert set(batch.labels.tolist()) <= {0, 1, 2}
    assert [record["step"] for record in batch.metrics] == list(range(7))


def test_the_same_for_the_same_seed() -> None:
    first, again, other = (shard(settings(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.metrics == again.metrics
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [({}, 1), ({"name": "deit_tiny_distilled_patch16_224"}, 2), ({"reg_tokens": 2}, 3)],
    ids=["vit", "distilled", "registers"],
)
def test_losses_of_step_0_equal_a_slow_recomputation(arguments: dict, prefix: int) -> None:
    model, timm_model = expose_attention(tiny_vit(**dict(arguments))), tiny_vit(**dict(arguments))
    weights = {"entropy_weight": 0.7, "class_weight": 1.3, "total_variation_weight": 0.01}
    jitter = {"jitter": 3, "total_variation_low": 2000.0, "total_variation_high": 9000.0}
    reported = shard(settings(**weights, **jitter), seed=3, model=model).metrics[0]

    # The same draws in the same order: images, labels, target, shift, mirror.
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (4,), generator=generator)
    target = 2000 + 7000 * float(torch.rand((), generator=generator))
    target *= np.sqrt(4 * 3 * 32 * 32 / (32 * 3 * 224 * 224))
    shift = int(torch.randint(-3, 4, (), generator=generator))
    augmented = torch.from_numpy(np.roll(images.numpy(), (shift, shift), axis=(2, 3)))
    if float(torch.rand((), generator=generator)) < 0.5:
        augmented = augmented.flip(-1)

    # timm's own model: the attention's output is the input of its projection.
    inputs: list[np.ndarray] = []
    for block in timm_model.blocks:
        block.attn.proj.register_forward_pre_hook(
            lambda _m, args: inputs.append(args[0].detach().double().numpy())
        )
    with torch.no_grad():
        class_logits = timm_model(augmented).double().numpy()
    entropy = 0.0
    for merged in inputs:
        patches = merged.reshape(4, -1, 3, 16).mean(axis=2)[:, prefix:]
        norms = np.linalg.norm(patches, axis=-1, keepdims=True)
        similarities = np.einsum("bid,bjd->bij", patches / norms, patches / norms).reshape(4, -1)
        points = np.linspace(similarities.min(), similarities.max(), 10)
        densities = [
            gaussian_kde(row, bw_method=0.01 / row.std(ddof=1))(points) + 1e-4
            for row in similarities
        ]
        entropy += np.mean([trapezoid(-f * np.log(f), points) for f in densities])
    classes = -log_softmax(class_logits, axis=1)[np.arange(4), labels.numpy()].mean()
    x = augmented.double().numpy()
    variation = sum(
        np.linalg.norm(way)
        for way in (
            x[..., 1:] - x[..., :-1],
            x[..., 1:, :] - x[..., :-1, :],
            x[..., 1:, 1:] - x[..., :-1, :-1],
            x[..., :-1, 1:] - x[..., 1:, :-1],
        )
    )

    # Similarities in widths of the kernel (0.01), through a model in single precision.
    assert reported["patch_entropy"] == pytest.approx(entropy, rel=2e-3)
    assert reported["cross_entropy"] == pytest.approx(classes, rel=1e-4)
    assert reported["total_variation"] == pytest.approx(variation, rel=1e-5)
    expected = -0.7 * entropy + 1.3 * classes + 0.01 * abs(variation - target)
    assert reported["loss"] == pytest.approx(expected, rel=1e-3)


def test_swin() -> None:
    first, again = (shard(settings(), model=expose_attention(tiny_swin())) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.metrics[0]["patch_entropy"] != 0


def test_entropy_rises_when_it_alone_counts() -> None:
    alone = {"class_weight": 0.0, "total_variation_weight": 0.0, "jitter": 0}
    metrics = shard(settings(iterations=40, **alone), seed=1).metrics
    entropies = [record["patch_entropy"] for record in metrics]
    assert np.mean(entropies[-3:]) > np.mean(entropies[:3]) + 0.1, entropies


def test_total_variation_comes_to_its_target() -> None:
    alone = {"class_weight": 0.0, "entropy_weight": 0.0, "total_variation_weight": 1.0}
    ends = {"total_variation_low": 2500.0, "total_variation_high": 2500.0}
    metrics = shard(settings(iterations=60, **alone, **ends), seed=1).metrics
    target = 2500 * np.sqrt(4 * 3 * 32 * 32 / (32 * 3 * 224 * 224))
    assert metrics[0]["total_variation"] > 2 * target
    assert metrics[-1]["total_variation"] == pytest.approx(target, rel=0.05)


def test_two_rounds_of_warm_up_and_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    betas: set[tuple[float, float]] = set()

    class Recorder(torch.optim.Adam):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            (group,) = self.param_groups
            rates.append(group["lr"])
            betas.add(group["betas"])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Recorder)
    shard(settings(iterations=20, learning_rate=0.5, warmup=0.3), size=1)
    rise = [0.5 / 3, 1.0 / 3, 0.5]
    fall = [0.25 * (1 + np.cos(np.pi * step / 7)) for step in range(7)]
    assert rates == pytest.approx([*rise, *fall] * 2)
    assert betas == {(0.5, 0.9)}


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_few_iterations(iterations: int) -> None:
    batch = shard(settings(iterations=iterations, warmup=0.9), size=1)
    assert [record["step"] for record in batch.metrics] == list(range(iterations))


def test_nan_names_its_own_learning_rate() -> None:
    model = expose_attention(tiny_vit())
    model.blocks[0].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match=r"synthesis\.patch_similarity\.learning_rate"):
        shard(settings(), model=model)


def test_range_of_the_total_variation_is_checked() -> None:
    with pytest.raises(ValueError, match="total_variation_low is above"):
        settings(total_variation_low=5.0, total_variation_high=4.0)
