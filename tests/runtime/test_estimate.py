from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _helpers.runs import make_run
from scipy.special import softmax

from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.estimate import (
    ESTIMATE_PATH,
    CostEstimate,
    accuracy_kept,
    accuracy_kept_interval,
    estimate_from_logits,
    read_estimate,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def logits(rows: int, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(5)
    reference = 2 * generator.normal(size=(rows, 7))
    return reference, reference + noise * generator.normal(size=(rows, 7))


def test_kept_is_what_drawn_labels_say() -> None:
    """Labels drawn from the reference's own probabilities: the accuracies have the ratio R."""
    reference, other = logits(40, 2.0)
    generator = np.random.default_rng(1)
    right = np.zeros(2)
    for row, given in zip(reference, other, strict=True):
        labels = generator.choice(7, size=20_000, p=softmax(row))
        right += [(labels == row.argmax()).sum(), (labels == given.argmax()).sum()]
    kept = accuracy_kept(reference, other)
    assert kept == pytest.approx(right[1] / right[0], abs=0.01)
    assert 0.2 < kept < 0.9, "a case that tells something"


def test_equal_logits_keep_all() -> None:
    reference, _ = logits(9, 0.0)
    assert accuracy_kept(reference, reference.copy()) == 1.0
    assert accuracy_kept_interval(reference, reference.copy(), seed=0) == (1.0, 1.0)


def test_a_sure_reference_gives_the_agreement() -> None:
    reference, other = logits(50, 3.0)
    agreement = np.mean(reference.argmax(axis=1) == other.argmax(axis=1))
    assert accuracy_kept(1000 * reference, other) == pytest.approx(agreement, abs=1e-3)


def test_rows_with_nan_predict_nothing() -> None:
    reference, _ = logits(4, 0.0)
    other = reference.copy()
    other[1, 3] = np.nan
    sure = softmax(reference, axis=1).max(axis=1)
    expected = (sure.sum() - sure[1]) / sure.sum()
    assert accuracy_kept(reference, other) == pytest.approx(expected)


def test_interval_is_the_bootstraps() -> None:
    reference, other = logits(30, 2.0)
    probabilities = softmax(reference, axis=1)
    own = probabilities.max(axis=1)
    others = probabilities[np.arange(30), other.argmax(axis=1)]
    generator = np.random.default_rng(77)  # other draws than the implementation's
    shares = []
    for _ in range(4000):
        chosen = generator.integers(30, size=30)
        shares.append(others[chosen].sum() / own[chosen].sum())
    expected = np.percentile(shares, [2.5, 97.5])
    interval = accuracy_kept_interval(reference, other, seed=3)
    np.testing.assert_allclose(interval, expected, atol=0.02)
    assert interval == accuracy_kept_interval(reference, other, seed=3)
    assert interval[0] < accuracy_kept(reference, other) < interval[1]


@pytest.mark.parametrize(
    ("reference", "other", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "at least one row"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "one shape"),
        (np.zeros(3), np.zeros(3), "one shape"),
        (np.full((2, 3), np.inf), np.zeros((2, 3)), "not finite"),
    ],
    ids=["nothing", "other classes", "no rows", "infinite"],
)
def test_refusals(reference: NDArray, other: NDArray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        accuracy_kept(reference, other)


class TestOfARun:
    def estimate(self) -> CostEstimate:
        reference, other = logits(8, 1.0)
        return estimate_from_logits(
            reference, other, source="mimiq", blocks={"blocks.0": 12.5, "blocks.1": None}, seed=0
        )

    def test_content(self) -> None:
        reference, other = logits(8, 1.0)
        estimate = self.estimate()
        assert estimate.images == estimate.logits.n == 8
        assert estimate.accuracy_kept == accuracy_kept(reference, other)
        confidence = softmax(reference, axis=1).max(axis=1).mean()
        assert estimate.confidence == pytest.approx(confidence)
        assert [(row.block, row.sqnr_db) for row in estimate.blocks] == [
            ("blocks.0", 12.5),
            ("blocks.1", None),
        ]
        assert CostEstimate.model_validate(json.loads(estimate.model_dump_json())) == estimate

    def test_read_again(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        assert read_estimate(run) is None
        run.write_json(ESTIMATE_PATH, self.estimate().model_dump(mode="json"))
        assert read_estimate(run) == self.estimate()

    def test_damaged(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        run.write_json(ESTIMATE_PATH, {"images": 0})
        with pytest.raises(RunDirectoryError, match=r"images.*calibrate again"):
            read_estimate(run)
        run.path(ESTIMATE_PATH).unlink()
        with pytest.raises(RunDirectoryError, match=r"no finished estimate\.json"):
            read_estimate(run)
