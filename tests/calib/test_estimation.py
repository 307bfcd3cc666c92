from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from _helpers.calib_cases import PIXEL_SCALE, PREPROCESSING, pixels
from _helpers.little_memory import room_for
from _helpers.tiny_students import tiny_student, tiny_teacher
from torch import Tensor, nn

from mimiq_calib.estimation import estimate_cost
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from mimiq_runtime.estimate import CostEstimate

IMAGES = pixels(5)


def estimate(student: nn.Module, *, batch_size: int = 2) -> tuple[CostEstimate, list[int]]:
    steps: list[int] = []
    found = estimate_cost(
        student,
        tiny_teacher(),
        IMAGES,
        PREPROCESSING,
        source="mimiq",
        batch_size=batch_size,
        seed=0,
        advance=lambda count, _note: steps.append(count),
    )
    return found, steps


@torch.no_grad()
def block_by_block(model: nn.Module) -> list[Tensor]:
    """Outputs of the blocks without hooks, and the logits."""
    x = PIXEL_SCALE.normalise(IMAGES.float() / 255)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    outputs = []
    for block in model.blocks:
        x = block(x)
        outputs.append(x)
    return [*outputs, model.forward_head(model.norm(x))]


def sqnr(right: Tensor, given: Tensor) -> float:
    signal, noise = right.double().numpy(), (right - given).double().numpy()
    return 10 * np.log10(np.square(signal).sum() / np.square(noise).sum())


@pytest.mark.parametrize("bits", [4, 8])
def test_compares_blocks_and_logits(bits: int) -> None:
    found, steps = estimate(tiny_student(bits, bits))
    right, given = block_by_block(tiny_teacher()), block_by_block(tiny_student(bits, bits))
    assert steps == [2, 2, 1]
    assert [row.block for row in found.blocks] == ["blocks.0", "blocks.1"]
    for row, exact, output in zip(found.blocks, right[:-1], given[:-1], strict=True):
        assert row.sqnr_db == pytest.approx(sqnr(exact, output), abs=0.01)
    assert found.logits.sqnr_db == pytest.approx(sqnr(right[-1], given[-1]), abs=0.01)
    agreement = (right[-1].argmax(-1) == given[-1].argmax(-1)).float().mean()
    assert found.logits.agreement == pytest.approx(float(agreement))
    assert (found.images, found.source) == (5, "mimiq")


def test_batches_do_not_matter() -> None:
    # Sums of other batches are rounded otherwise, which may move codes that lie on an edge.
    whole, _ = estimate(tiny_student(8, 8), batch_size=5)
    parts, _ = estimate(tiny_student(8, 8), batch_size=1)
    assert whole.accuracy_kept == pytest.approx(parts.accuracy_kept, abs=1e-6)
    for left, right in zip(whole.blocks, parts.blocks, strict=True):
        assert left.sqnr_db == pytest.approx(right.sqnr_db, abs=0.5)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_too_little_memory_takes_smaller_batches(whose: str) -> None:
    """To the bit those that would be taken with this size, and nothing is counted twice."""
    student = tiny_student(8, 8)
    expected, _ = estimate(student, batch_size=2)
    model = student if whose == "student" else tiny_teacher()
    with room_for(model, 2), pytest.warns(RuntimeWarning, match=r"observation\.batch_size") as told:
        found, steps = estimate(student, batch_size=4)
    assert len(told) == 1
    assert steps == [2, 2, 1]
    assert found == expected
    with (
        room_for(model, 0),
        pytest.raises(InvalidInputError, match=r"one image at a time \(observation\.batch_size\)"),
    ):
        estimate(student, batch_size=1)
    assert not any(module._forward_hooks for module in model.modules()), "hooks are gone"


def test_the_teacher_itself_costs_nothing() -> None:
    found, _ = estimate(tiny_teacher())
    assert found.accuracy_kept == found.accuracy_kept_low == found.accuracy_kept_high == 1
    assert found.logits.identical
    assert all(row.sqnr_db is None for row in found.blocks), "no noise: the ratio is infinite"
    for model in (tiny_teacher(), tiny_student(4, 4)):
        assert not any(module._forward_hooks for module in model.modules()), "hooks are gone"
