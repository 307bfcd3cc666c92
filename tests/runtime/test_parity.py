from __future__ import annotations

import json

import numpy as np
import pytest

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.parity import LogitParity, compare_logits


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(40, 12)).astype(np.float32)


def test_values_of_two_models() -> None:
    a = logits(0)
    noise = 0.1 * logits(1)
    parity = compare_logits(a, a + noise)
    assert parity.n == 40
    assert parity.agreement == pytest.approx((a.argmax(1) == (a + noise).argmax(1)).mean())
    # A tenth of the amplitude is a hundredth of the power.
    assert parity.sqnr_db == pytest.approx(20, abs=1.5)
    difference = np.abs((a + noise).astype(np.float64) - a)
    assert parity.max_abs_error == pytest.approx(difference.max())
    assert parity.mean_abs_error == pytest.approx(difference.mean())
    assert 0 < (parity.kl or 0) < 0.1
    top5 = [{*row} for row in np.argsort(-a)[:, :5]]
    top5_noisy = [{*row} for row in np.argsort(-(a + noise))[:, :5]]
    common = np.mean([len(x & y) / 5 for x, y in zip(top5, top5_noisy, strict=True)])
    assert parity.top5_overlap == pytest.approx(common)
    assert 0.8 < common < 1
    assert not parity.identical


def test_equal_logits_are_identical_and_their_infinite_ratio_is_none() -> None:
    parity = compare_logits(logits(0), logits(0))
    assert parity.identical
    assert (parity.agreement, parity.top5_overlap, parity.kl) == (1, 1, 0)
    assert parity.sqnr_db is None


def test_nan_is_never_taken_for_identity() -> None:
    bad = logits(0)
    bad[0, 0] = np.nan
    parity = compare_logits(bad, bad)
    assert not parity.identical
    assert parity.agreement == pytest.approx(39 / 40)
    assert parity.top5_overlap == pytest.approx(39 / 40)
    values = (parity.sqnr_db, parity.kl, parity.max_abs_error, parity.mean_abs_error)
    assert values == (None,) * 4


@pytest.mark.parametrize("kind", ["noisy", "equal", "nan", "infinite"])
def test_survives_strict_json(kind: str) -> None:
    a, b = logits(0), logits(0)
    if kind == "noisy":
        b = logits(1)
    elif kind != "equal":
        b[3, 4] = np.nan if kind == "nan" else np.inf
    parity = compare_logits(a, b)
    text = json.dumps(parity.model_dump(mode="json"), allow_nan=False)
    assert LogitParity.model_validate_json(text) == parity


def test_shapes_must_fit() -> None:
    with pytest.raises(InvalidInputError, match="one shape"):
        compare_logits(logits(0), logits(0)[:, :5])
