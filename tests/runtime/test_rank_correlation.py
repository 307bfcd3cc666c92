from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.rank_correlation import average_ranks, spearman


@pytest.mark.parametrize("size", [3, 4, 10, 57])
@pytest.mark.parametrize("levels", [2, 5, 1000], ids="{} levels".format)
def test_equals_scipy_with_and_without_ties(size: int, levels: int) -> None:
    generator = np.random.default_rng([size, levels])
    a = generator.integers(levels, size=size).astype(np.float64)
    b = 0.3 * a + generator.integers(levels, size=size)
    a[0], b[0] = levels, -levels  # so that both vary
    np.testing.assert_array_equal(average_ranks(a), stats.rankdata(a))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_only_the_order_counts() -> None:
    a = np.array([0.1, 0.2, 0.3, 0.4])
    assert spearman(a, np.exp(50 * a)) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4])],
    ids=["nothing", "two points", "first constant", "second constant"],
)
def test_where_it_is_not_defined(a: list[float], b: list[float]) -> None:
    assert spearman(np.array(a, dtype=float), np.array(b, dtype=float)) is None


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2, 3], [1, 2]), ([1, 2, np.nan], [1, 2, 3]), ([1, 2, 3], [1, np.inf, 3])]
)
def test_what_has_no_ranks(a: list[float], b: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        spearman(np.array(a, dtype=float), np.array(b, dtype=float))
