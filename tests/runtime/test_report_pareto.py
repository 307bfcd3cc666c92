from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimiq_runtime.report.attention import map_similarity
from mimiq_runtime.report.pareto import (
    Candidate,
    _lines_of_names,
    _one_baseline,
    chosen_measure,
    pareto_front,
)

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def test_a_model_that_another_beats_is_left_out() -> None:
    points = [(1.0, 0.7), (2.0, 0.6), (3.0, 0.9), (1.0, 0.5), (3.0, 0.8)]
    assert pareto_front(points) == [0, 2]


@given(POINTS)
def test_the_front_is_what_the_definition_says(points: list[tuple[int, int]]) -> None:
    front = pareto_front([(float(cost), float(quality)) for cost, quality in points])
    for place, (cost, quality) in enumerate(points):
        cheaper_and_better = any(
            (c <= cost and q >= quality and (c < cost or q > quality)) for c, q in points
        )
        assert (place in front) != cheaper_and_better
    assert [points[place][0] for place in front] == sorted(points[place][0] for place in front)


def test_the_measure_is_what_most_models_have() -> None:
    fully = Candidate("a", {"accuracy": 0.7, "agreement": 0.8})
    partly = Candidate("b", {"agreement": 0.9})
    exact = Candidate("full precision", {"accuracy": 0.9, "estimate": 1.0}, baseline=True)
    assert chosen_measure([fully, exact]) == "accuracy"
    assert chosen_measure([fully, partly, exact]) == "agreement"
    assert chosen_measure([exact]) is None


def test_full_precision_is_one_candidate_unless_it_was_measured_twice() -> None:
    timed = Candidate("fp32", {"estimate": 1.0}, 5.0, 1, 100, machine="a CPU", baseline=True)
    seen = Candidate("fp32", {"accuracy": 0.7}, size=100, pictures=("photos", 9), baseline=True)
    (both,) = _one_baseline([timed, seen])
    assert both.quality == {"estimate": 1.0, "accuracy": 0.7}
    assert (both.latency_ms, both.machine, both.pictures) == (5.0, "a CPU", ("photos", 9))
    elsewhere = dataclasses.replace(timed, machine="another CPU")
    assert _one_baseline([timed, seen, elsewhere]) == [both, elsewhere]
    quantized = Candidate("w8a8", {"estimate": 1.0}, size=100)
    assert _one_baseline([timed, quantized, quantized]) == [timed, quantized, quantized]


def test_names_of_points_at_one_height_are_stacked() -> None:
    places = [(False, 1.0), (False, 0.99), (True, 1.0), (False, 0.5), (False, 1.0)]
    assert _lines_of_names(places) == [0, 1, 0, 0, 2]
    assert _lines_of_names([(False, 1.0)]) == [0]


def test_the_similarity_of_maps_is_their_correlation() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((3, 4, 5)), random.random((3, 4, 5))
    expected = np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)])
    assert map_similarity(a, b) == pytest.approx(expected)
    assert map_similarity(a, 3 * a + 1) == pytest.approx(1)
    assert map_similarity(np.ones((1, 2, 2)), np.ones((1, 2, 2))) == 0
