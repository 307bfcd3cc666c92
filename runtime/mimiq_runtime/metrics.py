r"""Pure functions that measure logits and tensors: shapes and units are in the docstrings.

Not-a-number is never good news here: a row of logits that holds a NaN predicts nothing, so it
counts as wrong and as disagreeing, also with another such row; a measure of distance becomes NaN.
All sums are made in double precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]
    Labels = NDArray[np.integer[Any]]

__all__ = [
    "agreement",
    "kl_divergence",
    "max_abs_error",
    "mean_abs_error",
    "softmax",
    "sqnr_db",
    "top1_accuracy",
    "topk_accuracy",
    "topk_overlap",
]


def top1_accuracy(logits: Array, labels: Labels) -> float:
    """Share of rows whose largest logit is that of the label: mean of [argmax_c z_nc = y_n].

    Args:
        logits: Array (N, C).
        labels: Class indices (N,), 0 to C - 1.

    Returns:
        Share, 0 to 1. Of equal logits the first one is the prediction, as in ``argmax``.

    Raises:
        InvalidInputError: The shapes do not fit, nothing is given, or a label is no class.
    """
    return topk_accuracy(logits, labels, k=1)


def topk_accuracy(logits: Array, labels: Labels, *, k: int) -> float:
    """Share of rows whose label is among the k largest logits.

    ``mean_n [#{c : z_nc before z_ny} < k]``, where a logit comes before another one when it is
    larger, or equal and of a lower index.

    Args:
        logits: Array (N, C).
        labels: Class indices (N,), 0 to C - 1.
        k: Number of predictions allowed, at least 1. From C on every row without NaN is right.

    Returns:
        Share, 0 to 1.

    Raises:
        InvalidInputError: The shapes do not fit, nothing is given, a label is no class, k < 1.
    """
    _check_logits(logits)
    _check_k(k)
    _check_labels(labels, logits.shape)
    own = np.take_along_axis(logits, labels[:, np.newaxis].astype(np.intp), axis=1)
    lower_index = np.arange(logits.shape[1]) < labels[:, np.newaxis]
    before = (logits > own) | ((logits == own) & lower_index)
    right = (before.sum(axis=1) < k) & ~np.isnan(logits).any(axis=1)
    return float(right.mean())


def agreement(reference: Array, other: Array) -> float:
    """Share of rows with the same top-1: mean of [argmax_c a_nc = argmax_c b_nc].

    Args:
        reference: Logits (N, C).
        other: Logits (N, C).

    Returns:
        Share, 0 to 1.

    Raises:
        InvalidInputError: The shapes do not fit, or nothing is given.
    """
    return topk_overlap(reference, other, k=1)


def topk_overlap(reference: Array, other: Array, *, k: int) -> float:
    """Mean share of the k largest logits that two models have in common: |A_n ∩ B_n| / k.

    Args:
        reference: Logits (N, C).
        other: Logits (N, C).
        k: Size of the sets, at least 1; C when it is larger than that.

    Returns:
        Share, 0 to 1; the order inside the sets does not matter.

    Raises:
        InvalidInputError: The shapes do not fit, nothing is given, k < 1.
    """
    _check_logits(reference)
    _check_same_shape(reference, other)
    _check_k(k)
    usable = ~(np.isnan(reference).any(axis=1) | np.isnan(other).any(axis=1))
    common = (_topk_mask(reference, k) & _topk_mask(other, k)).sum(axis=1)
    return float(np.where(usable, common / min(k, reference.shape[1]), 0.0).mean())


def sqnr_db(reference: Array, other: Array) -> float:
    r"""Signal-to-quantization-noise ratio: 10 log10(\sum r^2 / \sum (r - o)^2).

    Args:
        reference: The signal, of any shape.
        other: The signal with noise, of the same shape.

    Returns:
        Decibels: infinite when both are equal, minus infinity when only the reference is zero
        everywhere, NaN when a value is not finite.

    Raises:
        InvalidInputError: The shapes differ, or nothing is given.
    """
    noise = np.square(_difference(reference, other)).sum()
    signal = np.square(reference.astype(np.float64)).sum()
    if not np.isfinite(noise + signal):
        return float("nan")
    if noise == 0:
        return float("inf")
    return float(10 * (np.log10(signal) - np.log10(noise))) if signal > 0 else float("-inf")


def max_abs_error(reference: Array, other: Array) -> float:
    """Largest distance, max |r - o|, in the unit of the tensors; shapes must be equal."""
    return float(np.abs(_difference(reference, other)).max())


def mean_abs_error(reference: Array, other: Array) -> float:
    """Mean distance, mean |r - o|, in the unit of the tensors; shapes must be equal."""
    return float(np.abs(_difference(reference, other)).mean())


def softmax(logits: Array) -> NDArray[np.float64]:
    """Probabilities exp(z_c) / sum_k exp(z_k) along the last axis, without overflow.

    Args:
        logits: Array (..., C).

    Returns:
        Array (..., C), rows that sum to 1; NaN in rows that hold NaN or plus infinity.
    """
    probabilities: NDArray[np.float64] = np.exp(_log_softmax(logits))
    return probabilities


def kl_divergence(reference: Array, other: Array) -> float:
    """Kullback-Leibler divergence of the softmax distributions, mean over the rows.

    ``mean_n sum_c p_nc (log p_nc - log q_nc)`` with p of the reference and q of the other; a
    class with p = 0 adds nothing.

    Args:
        reference: Logits (N, C).
        other: Logits (N, C).

    Returns:
        Nats, 0 or more; infinite where q is 0 and p is not; NaN when a logit is NaN.

    Raises:
        InvalidInputError: The shapes do not fit, or nothing is given.
    """
    _check_logits(reference)
    _check_same_shape(reference, other)
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    # Rounding can leave a row that is equal a hair below zero.
    return float(np.maximum(terms.sum(axis=1), 0).mean())


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        values -= values.max(axis=-1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def _topk_mask(logits: Array, k: int) -> NDArray[np.bool_]:
    # Stable, so that of equal logits the lower index comes first, as in argmax.
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    mask = np.zeros(logits.shape, dtype=np.bool_)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def _difference(reference: Array, other: Array) -> NDArray[np.float64]:
    _check_same_shape(reference, other)
    if reference.size == 0:
        raise InvalidInputError("Expected tensors with at least one value; got an empty one.")
    with np.errstate(invalid="ignore"):
        return reference.astype(np.float64) - other.astype(np.float64)


def _check_logits(logits: Array) -> None:
    if logits.ndim != 2 or logits.size == 0:
        raise InvalidInputError(
            f"Expected logits of shape (N, classes), at least one row; got {logits.shape}."
        )


def _check_same_shape(reference: Array, other: Array) -> None:
    if reference.shape != other.shape:
        raise InvalidInputError(
            f"Expected two tensors of one shape; got {reference.shape} and {other.shape}."
        )


def _check_labels(labels: Labels, shape: tuple[int, ...]) -> None:
    if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidInputError(
            f"Expected {shape[0]} integer labels, one for each row of logits; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise InvalidInputError(
            f"Expected labels in 0..{shape[1] - 1}; got {labels.min()}..{labels.max()}."
        )


def _check_k(k: int) -> None:
    if k < 1:
        raise InvalidInputError(f"Expected k of at least 1; got {k}.")
