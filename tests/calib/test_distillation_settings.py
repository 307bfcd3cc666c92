from __future__ import annotations

import pytest
from _helpers.calib_cases import distillation


@pytest.mark.parametrize(("bits", "factor"), [(2, 4.0), (3, 2.0), (4, 1.0), (6, 0.25), (8, 1 / 16)])
def test_learning_rate_follows_the_step_of_the_grid(bits: int, factor: float) -> None:
    settings = distillation(learning_rate=1e-4, scale_learning_rate=1e-3, follow_grid=True)
    at_bits = settings.at_bits(bits)
    assert at_bits.learning_rate == pytest.approx(factor * 1e-4)
    # Nothing else changes, not even the original.
    assert at_bits.model_copy(update={"learning_rate": 1e-4}) == settings
    assert settings.learning_rate == 1e-4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learning_rate_stays_where_it_does_not_follow(bits: int) -> None:
    settings = distillation(follow_grid=False)
    assert settings.at_bits(bits) == settings
