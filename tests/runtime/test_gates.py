from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import Gate, GateLimits, GateResult, Measures, evaluate_gates

NAN, INF = float("nan"), float("inf")


def evaluate(measures: dict[str, float], **limits: float) -> tuple[GateResult, ...]:
    return evaluate_gates(Measures(**measures), GateLimits(**limits))


@pytest.mark.parametrize(
    ("accuracy", "limit", "measured", "passed"),
    [
        (0.79, 1.0, 1.0, True),  # 100 (0.80 - 0.79) is 1.0000000000000009 in binary
        (0.78, 1.0, 2.0, False),
        (0.80, 0.0, 0.0, True),
        (0.82, 0.0, -2.0, True),
        (0.80, -1.0, 0.0, False),
    ],
)
def test_drop_in_percentage_points(
    accuracy: float, limit: float, measured: float, passed: bool
) -> None:
    (result,) = evaluate({"accuracy": accuracy, "reference_accuracy": 0.80}, max_drop=limit)
    assert (result.name, result.limit, result.passed) == (Gate.MAX_DROP, limit, passed)
    assert result.measured == pytest.approx(measured)


@pytest.mark.parametrize(
    ("gate", "measure"),
    [("min_agreement", "agreement"), ("min_accuracy", "accuracy"), ("min_sqnr", "sqnr_db")],
)
@pytest.mark.parametrize(("measured", "passed"), [(0.95, True), (0.96, True), (0.949, False)])
def test_minimum_gates(gate: str, measure: str, measured: float, passed: bool) -> None:
    (result,) = evaluate({measure: measured}, **{gate: 0.95})
    assert (result.name, result.measured, result.passed) == (gate, measured, passed)


@pytest.mark.parametrize(("measured", "passed"), [(0.01, True), (0.009, True), (0.011, False)])
def test_the_divergence_has_a_maximum(measured: float, passed: bool) -> None:
    (result,) = evaluate({"kl": measured}, max_kl=0.01)
    assert (result.name, result.measured, result.passed) == ("max_kl", measured, passed)


def test_only_gates_with_a_limit_are_evaluated_in_a_fixed_order() -> None:
    measured = {"accuracy": 0.7, "reference_accuracy": 0.8, "agreement": 0.9, "kl": 0.2}
    assert evaluate(measured) == ()
    results = evaluate(measured, max_kl=0.1, min_accuracy=0.75, min_agreement=0.8, max_drop=50)
    assert [(result.name, result.passed) for result in results] == [
        (Gate.MAX_DROP, True),
        (Gate.MIN_AGREEMENT, True),
        (Gate.MIN_ACCURACY, False),
        (Gate.MAX_KL, False),
    ]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("gate", list(Gate))
def test_what_is_no_number_never_passes_and_has_a_json_form(gate: Gate, value: float) -> None:
    limit = {"max_drop": 100, "min_sqnr": -300, "max_kl": 1e9}.get(gate, 0)
    measures = dict.fromkeys(("accuracy", "agreement", "sqnr_db", "kl"), value)
    (result,) = evaluate({**measures, "reference_accuracy": 0.5}, **{gate.value: limit})
    # The logits of two equal models have an infinite ratio, and nothing is better than that.
    identical = gate is Gate.MIN_SQNR and value == INF
    assert (result.measured, result.passed) == (None, identical)
    text = json.dumps(result.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["name"] == str(gate)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_agreement": 95}, "min_agreement"),
        ({"min_accuracy": -0.1}, "min_accuracy"),
        ({"max_drop": 101}, "max_drop"),
        ({"max_drop": NAN}, "max_drop"),
        ({"min_sqnr": NAN}, "min_sqnr"),
        ({"max_kl": -0.1}, "max_kl"),
        ({"max_kl": INF}, "max_kl"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        GateLimits(**limits)


@pytest.mark.parametrize(
    ("measures", "limits", "words"),
    [
        ({"accuracy": 0.5}, {"max_drop": 1.0}, "labelled pictures"),
        ({"reference_accuracy": 0.5}, {"max_drop": 1.0}, "labelled pictures"),
        ({"agreement": 0.5}, {"min_accuracy": 0.5}, "labelled pictures"),
        ({"accuracy": 0.5}, {"min_agreement": 0.5}, "give a reference"),
        ({"accuracy": 0.5}, {"min_sqnr": 10}, "give a reference"),
        ({"accuracy": 0.5}, {"max_kl": 0.5}, "give a reference"),
    ],
)
def test_a_gate_without_its_measure_is_an_error_and_no_pass(
    measures: dict[str, float], limits: dict[str, float], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"nothing was measured for it.*{words}"):
        evaluate(measures, **limits)


def test_the_other_limits_go_before() -> None:
    common = GateLimits(min_agreement=0.9, max_kl=0.1)
    assert common.overridden_by(GateLimits(min_agreement=0.8, min_sqnr=20)).given == {
        Gate.MIN_AGREEMENT: 0.8,
        Gate.MAX_KL: 0.1,
        Gate.MIN_SQNR: 20,
    }
    assert common.overridden_by(GateLimits()) == common
