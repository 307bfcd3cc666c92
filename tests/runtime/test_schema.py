from __future__ import annotations

import pytest
from pydantic import ValidationError

from mimiq_runtime.schema import Schema, describe_faults


class Inner(Schema):
    rate: float


class Outer(Schema):
    name: str
    inner: Inner
    model_name: str = "no warning about pydantic's namespace"


def faults_of(content: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(content)
    return describe_faults(caught.value)


def test_every_fault_is_named_by_its_place() -> None:
    faults = faults_of({"inner": {"rate": "many", "rat": 1}, "extra": 2})
    wrong_type = "input should be a valid number, unable to parse string as a number, got 'many'"
    assert sorted(faults) == [
        "extra: unknown key",
        "inner.rat: unknown key",
        f"inner.rate: {wrong_type}",
        "name: missing",
    ]


def test_a_fault_of_the_whole_and_a_long_value() -> None:
    assert faults_of([1])[0].startswith("(top level): ")
    (fault,) = faults_of({"name": "a", "inner": {"rate": "x" * 1000}})
    assert len(fault) < 250


def test_values_cannot_be_changed() -> None:
    outer = Outer(name="a", inner=Inner(rate=1))
    with pytest.raises(ValidationError, match="frozen"):
        outer.name = "b"  # type: ignore[misc]
    assert outer.name == "a"
