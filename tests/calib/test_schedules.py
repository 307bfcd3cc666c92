from __future__ import annotations

import pytest
import torch

from mimiq_calib.distillation.distill import steps_of_distillation
from mimiq_calib.recipe import DistillationSettings
from mimiq_calib.schedules import cosine_factor, warm_up_cosine_factor


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.5, 1.0])
def test_equals_torchs_schedule(total: int, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total, eta_min=floor)
    for step in range(total + 1):
        assert cosine_factor(step, total, floor) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        schedule.step()


def test_ends() -> None:
    assert cosine_factor(0, 10, 0.01) == 1.0
    assert cosine_factor(10, 10, 0.01) == pytest.approx(0.01)
    assert cosine_factor(5, 10, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("total", "warm_up"), [(500, 100), (10, 3), (7, 0), (1, 1), (6, 5)])
def test_warm_up_equals_torchs_schedules_in_sequence(total: int, warm_up: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    falling = schedulers.CosineAnnealingLR(optimizer, T_max=max(1, total - warm_up))
    schedule: torch.optim.lr_scheduler.LRScheduler = falling
    if warm_up:
        rising = schedulers.LambdaLR(optimizer, lambda step: (step + 1) / warm_up)
        schedule = schedulers.SequentialLR(optimizer, [rising, falling], milestones=[warm_up])
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert warm_up_cosine_factor(step, total, warm_up) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("images", "steps"), [(1, 3), (4, 3), (5, 6), (8, 6), (9, 9)])
def test_steps(images: int, steps: int) -> None:
    assert steps_of_distillation(DistillationSettings(epochs=3, batch_size=4), images) == steps
