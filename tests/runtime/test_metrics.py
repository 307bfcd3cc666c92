"""Independent references: scipy, scikit-learn, and values worked out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.metrics import (
    agreement,
    kl_divergence,
    max_abs_error,
    mean_abs_error,
    softmax,
    sqnr_db,
    top1_accuracy,
    topk_accuracy,
    topk_overlap,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAN, INF = float("nan"), float("inf")


def random_logits(seed: int, *, n: int = 200, classes: int = 10) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 3, (n, classes)).astype(np.float32)


def random_labels(seed: int, *, n: int = 200, classes: int = 10) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, classes, n)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_topk_equals_sklearn(k: int) -> None:
    logits, labels = random_logits(0), random_labels(1)
    expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(10))
    assert topk_accuracy(logits, labels, k=k) == pytest.approx(expected, abs=1e-12)


def test_top1_equals_sklearn() -> None:
    logits, labels = random_logits(0), random_labels(1)
    expected = accuracy_score(labels, logits.argmax(axis=1))
    assert top1_accuracy(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_ties_go_to_the_lower_index_as_in_argmax() -> None:
    logits = np.zeros((3, 3), dtype=np.float32)
    labels = np.array([0, 1, 2])
    assert [topk_accuracy(logits, labels, k=k) for k in (1, 2, 3)] == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


@pytest.mark.parametrize("bad_class", [0, 1, 2])
def test_a_row_with_nan_is_wrong(bad_class: int) -> None:
    logits = np.array([[9.0, 0.0, 1.0], [9.0, 0.0, 1.0]])
    logits[1, bad_class] = NAN
    labels = np.array([0, 0])
    assert top1_accuracy(logits, labels) == 0.5
    assert topk_accuracy(logits, labels, k=3) == 0.5


def test_agreement_by_hand() -> None:
    a = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0], [NAN, 1.0]])
    b = np.array([[3.0, 9.0], [1.0, 2.0], [5.0, 5.0], [NAN, 1.0]])
    # Same, different, tie broken the same way, NaN in both: disagrees.
    assert agreement(a, b) == 0.5


def test_agreement_equals_argmax() -> None:
    a, b = random_logits(0), random_logits(1)
    assert agreement(a, b) == pytest.approx((a.argmax(1) == b.argmax(1)).mean(), abs=1e-12)
    assert agreement(a, a) == 1


def test_topk_overlap_equals_sets() -> None:
    a, b = random_logits(0), random_logits(1)
    expected = np.mean(
        [
            len({*np.argsort(row_a)[-5:]} & {*np.argsort(row_b)[-5:]}) / 5
            for row_a, row_b in zip(a, b, strict=True)
        ]
    )
    assert topk_overlap(a, b, k=5) == pytest.approx(expected, abs=1e-12)
    assert topk_overlap(a, b, k=50) == 1


def test_ties_among_many_classes_go_to_the_lower_index() -> None:
    # Whole numbers as logits: ties at the edge of every top 5. Python's sort is stable.
    a, b = (np.random.default_rng(seed).integers(0, 3, (20, 1000)) * 1.0 for seed in (0, 1))
    b[:, :50] = a[:, :50]
    top5 = [[{*sorted(range(1000), key=lambda c: -row[c])[:5]} for row in rows] for rows in (a, b)]
    expected = np.mean([len(x & y) / 5 for x, y in zip(*top5, strict=True)])
    assert expected > 0
    assert topk_overlap(a, b, k=5) == pytest.approx(expected, abs=1e-12)
    assert agreement(a, b) == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_topk_overlap_counts_nan_as_nothing() -> None:
    a = np.array([[1.0, 2.0, 3.0]] * 2)
    b = a.copy()
    b[0, 0] = NAN
    assert topk_overlap(a, b, k=2) == 0.5


@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.5], 20.0),  # 25 / 0.25 = 100
        ([1.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [1.0, 10.0], -20.0),
        ([1.0, 2.0], [1.0, 2.0], INF),
        ([0.0, 0.0], [0.0, 0.0], INF),
        ([0.0, 0.0], [1.0, 0.0], -INF),
        ([1.0, NAN], [1.0, 2.0], NAN),
        ([1.0, 1.0], [1.0, NAN], NAN),
        ([1.0, INF], [1.0, INF], NAN),
    ],
)
def test_sqnr_by_hand(reference: list[float], other: list[float], expected: float) -> None:
    got = sqnr_db(np.array(reference, np.float32), np.array(other, np.float32))
    assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_sqnr_of_a_uniform_quantizer() -> None:
    """A sine over the full range of b bits has 6.02 b + 1.76 dB (the textbook's formula)."""
    signal = np.sin(np.linspace(0, 1000, 200_001))
    step = 2 / 2**8
    assert sqnr_db(signal, np.round(signal / step) * step) == pytest.approx(
        6.0206 * 8 + 1.761, abs=0.1
    )


def test_sums_are_in_double_precision() -> None:
    reference = np.full(10_000, 1e25, dtype=np.float32)  # its square overflows float32
    other = np.full(10_000, 0.9e25, dtype=np.float32)
    assert sqnr_db(reference, other) == pytest.approx(20, abs=1e-3)


def test_absolute_errors_by_hand() -> None:
    a, b = np.array([1.0, -2.0, 3.0]), np.array([1.5, 2.0, 3.0])
    assert max_abs_error(a, b) == 4
    assert mean_abs_error(a, b) == pytest.approx(1.5)
    assert np.isnan(max_abs_error(a, np.array([1.0, NAN, 3.0])))
    assert np.isnan(mean_abs_error(a, np.array([1.0, NAN, 3.0])))


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_softmax_equals_scipy(offset: float) -> None:
    logits = random_logits(0).astype(np.float64) + offset
    np.testing.assert_allclose(softmax(logits), scipy.special.softmax(logits, axis=1), rtol=1e-12)


def test_softmax_takes_the_last_axis_of_any_rank() -> None:
    values = random_logits(0).reshape(4, 5, 10, 10)
    expected = scipy.special.softmax(values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(softmax(values), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1, 100], ids=["mild", "probabilities underflow"])
def test_kl_equals_scipy(scale: float) -> None:
    a, b = random_logits(0) * scale, random_logits(1) * scale
    p = scipy.special.softmax(a.astype(np.float64), axis=1)
    log_p = scipy.special.log_softmax(a.astype(np.float64), axis=1)
    log_q = scipy.special.log_softmax(b.astype(np.float64), axis=1)
    expected = (p * (log_p - log_q)).sum(axis=1).mean()
    assert kl_divergence(a, b) == pytest.approx(expected, rel=1e-12)
    if scale == 1:
        by_entropy = scipy.special.rel_entr(p, scipy.special.softmax(b.astype(float), axis=1))
        assert kl_divergence(a, b) == pytest.approx(by_entropy.sum(axis=1).mean(), rel=1e-9)


def test_kl_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    p, q = np.log([[3.0, 1.0]]), np.log([[1.0, 1.0]])
    assert kl_divergence(p, q) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-12)
    assert kl_divergence(q, p) != pytest.approx(kl_divergence(p, q))


def test_kl_at_the_ends() -> None:
    a = random_logits(0)
    assert kl_divergence(a, a) == 0
    # The same distributions but for rounding, which must not make a distance negative.
    assert all(0 <= kl_divergence(row[np.newaxis], row[np.newaxis] + 0.7) < 1e-6 for row in a)
    assert kl_divergence(np.array([[0.0, -INF]]), np.array([[0.0, 0.0]])) == pytest.approx(
        np.log(2)
    )
    assert kl_divergence(np.array([[0.0, 0.0]]), np.array([[0.0, -INF]])) == INF
    assert np.isnan(kl_divergence(np.array([[0.0, NAN]]), np.array([[0.0, 0.0]])))
    assert np.isnan(kl_divergence(np.array([[0.0, -INF]]), np.array([[0.0, NAN]])))


@pytest.mark.parametrize("function", [agreement, kl_divergence, sqnr_db, max_abs_error])
@pytest.mark.parametrize(
    ("shape_a", "shape_b", "expected"),
    [((3, 4), (3, 5), "one shape"), ((0, 4), (0, 4), r"at least one")],
    ids=["shapes", "empty"],
)
def test_bad_pairs_are_refused(
    function: Callable[..., float],
    shape_a: tuple[int, int],
    shape_b: tuple[int, int],
    expected: str,
) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        function(np.zeros(shape_a), np.zeros(shape_b))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 1]), "Expected 3 integer labels"),
        (np.array([0.0, 1.0, 2.0]), "integer labels.*got float64"),
        (np.array([0, 1, 4]), r"labels in 0\.\.3; got 0\.\.4"),
        (np.array([0, -1, 1]), r"labels in 0\.\.3; got -1\.\.1"),
    ],
    ids=["count", "type", "above", "below"],
)
def test_bad_labels_are_refused(labels: np.ndarray[Any, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        top1_accuracy(np.zeros((3, 4)), labels)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="k of at least 1; got 0"):
        topk_accuracy(np.zeros((1, 2)), np.array([0]), k=0)
    with pytest.raises(InvalidInputError, match="k of at least 1; got 0"):
        topk_overlap(np.zeros((1, 2)), np.zeros((1, 2)), k=0)
