from __future__ import annotations

import json

import pytest

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import Gate, evaluate_gates

NAN, INF = float("nan"), float("inf")


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
    (result,) = evaluate_gates(accuracy=accuracy, reference_accuracy=0.80, max_drop=limit)
    assert (result.name, result.limit, result.passed) == (Gate.MAX_DROP, limit, passed)
    assert result.measured == pytest.approx(measured)


@pytest.mark.parametrize(("measured", "passed"), [(0.95, True), (0.96, True), (0.949, False)])
def test_minimum_gates(measured: float, passed: bool) -> None:
    (result,) = evaluate_gates(agreement=measured, min_agreement=0.95)
    assert (result.name, result.measured, result.passed) == ("min_agreement", measured, passed)
    (result,) = evaluate_gates(accuracy=measured, min_accuracy=0.95)
    assert (result.name, result.measured, result.passed) == ("min_accuracy", measured, passed)


def test_only_gates_with_a_limit_are_evaluated_in_a_fixed_order() -> None:
    measured = {"accuracy": 0.7, "reference_accuracy": 0.8, "agreement": 0.9}
    assert evaluate_gates(**measured) == ()
    results = evaluate_gates(**measured, min_accuracy=0.75, min_agreement=0.8, max_drop=50)
    assert [(result.name, result.passed) for result in results] == [
        (Gate.MAX_DROP, True),
        (Gate.MIN_AGREEMENT, True),
        (Gate.MIN_ACCURACY, False),
    ]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("gate", list(Gate))
def test_what_is_no_number_never_passes_and_has_a_json_form(gate: Gate, value: float) -> None:
    limit = {"max_drop": 100, "min_agreement": 0, "min_accuracy": 0}[gate]
    (result,) = evaluate_gates(
        accuracy=value, reference_accuracy=0.5, agreement=value, **{str(gate): limit}
    )
    assert (result.measured, result.passed) == (None, False)
    text = json.dumps(result.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["name"] == str(gate)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_agreement": 95}, r"min_agreement must lie within 0\.\.1; got 95"),
        ({"min_accuracy": -0.1}, r"min_accuracy must lie within 0\.\.1"),
        ({"max_drop": 101}, r"max_drop must lie within -100\.\.100"),
        ({"max_drop": NAN}, "max_drop must lie within"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        evaluate_gates(accuracy=0.5, reference_accuracy=0.5, agreement=0.5, **limits)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_drop": 1.0, "accuracy": 0.5},
        {"max_drop": 1.0, "reference_accuracy": 0.5},
        {"min_agreement": 0.5, "accuracy": 0.5},
        {"min_accuracy": 0.5, "agreement": 0.5},
    ],
    ids=["no reference", "no accuracy", "no agreement", "no labels"],
)
def test_a_gate_without_its_measure_is_an_error_and_no_pass(arguments: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="nothing was measured for it"):
        evaluate_gates(**arguments)
