"""The learning rates that optimisers really got, step by step, against the formulas."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.calib_cases import (
    CPU,
    PREPROCESSING,
    distillation,
    no_advance,
    pixels,
    quantization,
    synthesis,
)
from _helpers.tiny_students import tiny_vit

from mimiq_calib.conversion.convert import build_student, expose_attention
from mimiq_calib.distillation.distill import distill
from mimiq_calib.synthesis.mimiq import synthesise_batch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """Options of all groups at each step of any AdamW or SGD."""
    steps: list[list[dict[str, Any]]] = []
    for name in ("AdamW", "SGD"):
        original = getattr(torch.optim, name)

        class Recorder(original):  # type: ignore[misc, valid-type]
            def step(self, closure: None = None) -> None:
                options = [
                    {key: value for key, value in group.items() if key != "params"}
                    for group in self.param_groups
                ]
                steps.append(copy.deepcopy(options))
                super().step(closure)

        monkeypatch.setattr(torch.optim, name, Recorder)
    return steps


def cosine(step: int, total: int, first: float, last: float) -> float:
    return last + (first - last) * (math.cos(math.pi * step / total) + 1) / 2


def test_of_mimiqs_synthesis(recorded: list[list[dict[str, Any]]]) -> None:
    settings = synthesis(
        iterations=9, learning_rate=0.3, final_learning_rate=0.02, weight_decay=1e-4
    )
    synthesise_batch(
        expose_attention(tiny_vit()),
        settings,
        PREPROCESSING,
        batch_size=1,
        num_classes=10,
        generator=torch.Generator().manual_seed(0),
        device=CPU,
        advance=no_advance,
    )
    rates = [group["lr"] for (group,) in recorded]
    assert rates == pytest.approx([cosine(step, 9, 0.3, 0.02) for step in range(9)])
    assert rates[0] == pytest.approx(0.3)
    (last,) = recorded[-1]
    assert (last["betas"], last["weight_decay"]) == ((0.9, 0.999), 1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_of_the_distillation(
    recorded: list[list[dict[str, Any]]], tmp_path: Path, optimizer: str
) -> None:
    teacher = expose_attention(tiny_vit(depth=1))
    settings = distillation(
        epochs=3,
        warmup_epochs=1,
        optimizer=optimizer,
        learning_rate=1e-3,
        scale_learning_rate=5e-3,
        final_learning_rate_ratio=0.1,
        weight_decay=0.01,
        batch_size=2,
    )
    distill(
        build_student(teacher, quantization(8, 8)),
        teacher,
        pixels(3),  # two batches an epoch
        settings,
        PREPROCESSING,
        seed=0,
        checkpoint=tmp_path / "checkpoint.safetensors",
        on_epoch=lambda _metrics: None,
        advance=no_advance,
    )
    weights, scales = zip(*recorded, strict=True)
    falling = [cosine(step, 6, 1.0, 0.1) for step in range(6)]
    warm_up = [0.0, 0.0]
    assert [group["lr"] for group in weights] == pytest.approx(
        [*warm_up, *(1e-3 * factor for factor in falling[2:])]
    )
    assert [group["lr"] for group in scales] == pytest.approx([5e-3 * f for f in falling])
    assert {group["weight_decay"] for group in weights} == {0.01}
    assert {group["weight_decay"] for group in scales} == {0.0}
    if optimizer == "sgd":
        assert {(group["momentum"], group["nesterov"]) for group in weights} == {(0.9, True)}
