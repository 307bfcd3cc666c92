"""Rows against formulas written out here; layouts against those that exports make."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from mimiq_runtime.layer_parity import (
    LayerReport,
    LayerRow,
    LayerSums,
    QuantizedValues,
    align_layout,
    find_first_fault,
)

RNG = np.random.default_rng(0)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(-8, 8, shape).astype(np.int16)


def row(name: str, sqnr: float | None = None, equal: float = 1.0, ratio: float = 1.0) -> LayerRow:
    return LayerRow(
        name=name, made_by=f"before {name}", n=10, sqnr_db=sqnr, equal=equal, scale_ratio=ratio
    )


def test_a_row_of_several_batches_is_that_of_all_at_once() -> None:
    reference, other = codes(6, 5, 4), codes(6, 5, 4)
    sums = LayerSums("layer", "product")
    for part in (slice(0, 4), slice(4, 6)):
        sums.add_codes(QuantizedValues(reference[part], 0.5), QuantizedValues(other[part], 0.25))
    found = sums.row()
    left, right = reference * 0.5, other * 0.25
    ratio = np.sum(left**2) / np.sum((left - right) ** 2)
    assert found.sqnr_db == pytest.approx(10 * np.log10(ratio), rel=1e-12)
    assert found.equal == np.mean(reference == other)
    assert (found.n, found.scale_ratio) == (120, 0.5)


def test_equal_tensors_have_no_finite_ratio_and_no_fault() -> None:
    sums = LayerSums("layer", "product")
    values = codes(2, 3)
    sums.add_codes(QuantizedValues(values, 0.5), QuantizedValues(values.copy(), 0.5))
    assert (sums.row().sqnr_db, sums.row().equal) == (None, 1.0)
    assert not sums.row().parts(1000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_a_fault(value: float) -> None:
    sums = LayerSums("logits", "head")
    sums.add_numbers(np.ones((1, 3)), np.array([[1, value, 1]]))
    assert sums.row().sqnr_db is None
    assert sums.row().parts(0)
    fault = find_first_fault([sums.row()], 0)
    assert fault is not None
    assert "not a number" in fault.reason


def test_turned_keys_are_turned_back() -> None:
    keys = codes(2, 3, 5, 4)
    found = align_layout(keys.transpose(0, 1, 3, 2), keys)
    assert found is not None
    np.testing.assert_array_equal(found, keys)


def test_a_square_is_turned_where_more_elements_are_equal_then() -> None:
    keys = codes(2, 3, 4, 4)
    changed = keys.copy()
    changed[0, 0, 0] += 1
    for given in (changed, changed.transpose(0, 1, 3, 2)):
        np.testing.assert_array_equal(align_layout(given, keys), changed)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_become_the_picture(channels: int) -> None:
    picture = codes(2, channels, 8, 12)
    # (batch, channels, rows, columns, 4, 4), and from it one row a patch
    windows = sliding_window_view(picture, (4, 4), axis=(2, 3))[:, :, ::4, ::4]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(2, 6, channels * 16)
    np.testing.assert_array_equal(align_layout(patches, picture), picture)


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 5), (30,), (2, 5, 3, 1)])
def test_what_does_not_fit_is_not_compared(shape: tuple[int, ...]) -> None:
    assert align_layout(codes(*shape), codes(2, 15)) is None


def test_the_first_row_below_the_threshold_is_named() -> None:
    rows = [row("a"), row("b", 60, 0.999), row("c", 44.9, 0.99), row("d", 10, 0.5)]
    fault = find_first_fault(rows, 45)
    assert fault is not None
    assert (fault.tensor, fault.layer) == ("c", "before c")
    assert "44.9 dB" in fault.reason
    assert find_first_fault(rows[:2], 45) is None


def test_a_few_flips_in_a_small_tensor_are_no_fault() -> None:
    assert find_first_fault([row("a", 20, 0.99985)], 45) is None
    assert find_first_fault([row("a", 20, 0.9997)], 45) is not None
    # Logits are no codes: no flip excuses them.
    logits = row("logits", 20, 0.9999).model_copy(update={"scale_ratio": None})
    assert find_first_fault([logits], 45) is not None


def test_another_scale_is_the_fault_of_the_quantizers_own_layer() -> None:
    rows = [row("a"), row("blocks.0.fc1.input_quantizer", 50, 0.9, ratio=1.05), row("c", 3, 0.1)]
    fault = find_first_fault(rows, 45)
    assert fault is not None
    assert fault.layer == "blocks.0.fc1"
    assert "1.05 times" in fault.reason
    # Single precision holds a scale to 6e-8 of it.
    assert find_first_fault([row("a", ratio=1 + 1e-7)], 45) is None


def test_the_report_says_what_it_does_not_know() -> None:
    report = LayerReport(
        against="openvino",
        images=2,
        stepwise=False,
        undisturbed=0.5,
        threshold_db=45,
        rows=[row("a")],
        not_compared=["b.input_quantizer"],
        first=None,
    )
    said = " ".join(report.sentences())
    for words in ("1 quantizers", "no tensor is below 45 dB", "add up", "b.input_q", "50.0 %"):
        assert words in said
