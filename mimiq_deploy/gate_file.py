"""``gates.yaml``: the limits of a project, kept in its repository."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError, field_validator

from mimiq_deploy.strict_yaml import YAML_ERRORS, parse_yaml, read_small_file
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import GateLimits
from mimiq_runtime.schema import Schema, describe_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["BenchGates", "GateFile", "ValidateGates", "read_gate_file", "resolve_limits"]


class ValidateGates(GateLimits):
    """The section ``validate``.

    Attributes:
        engines: Limits of single engines, by name; what they leave out is taken from the section.
    """

    engines: dict[str, GateLimits] = Field(default_factory=dict)

    @field_validator("engines")
    @classmethod
    def _are_known(cls, engines: dict[str, GateLimits]) -> dict[str, GateLimits]:
        from mimiq_deploy.implementations import known_implementations

        known = known_implementations()
        unknown = [name for name in engines if name not in known]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return engines

    def of(self, engine: str) -> GateLimits:
        """The limits of an engine."""
        common = GateLimits.model_validate(self.model_dump(exclude={"engines"}))
        own = self.engines.get(engine)
        return common if own is None else common.overridden_by(own)


class BenchGates(Schema):
    """The section ``bench``.

    Attributes:
        tolerance: Share of an older speedup that may be lost, from 0 to below 1.
    """

    tolerance: float | None = Field(default=None, ge=0, lt=1)


class GateFile(Schema):
    """The file: each command reads its own section.

    Attributes:
        validate_: Limits of ``mimiq-deploy validate``; ``validate`` in the file.
        bench: Limits of ``mimiq-deploy bench``.
    """

    validate_: ValidateGates = Field(default_factory=ValidateGates, alias="validate")
    bench: BenchGates = Field(default_factory=BenchGates)


def read_gate_file(path: Path) -> GateFile:
    """Read and check a gate file.

    Raises:
        InvalidInputError: It cannot be read, is no YAML, or does not validate; all faults at once.
    """
    try:
        content = parse_yaml(read_small_file(path))
    except YAML_ERRORS as error:
        raise InvalidInputError(
            f"The gates {path} cannot be used: {' '.join(str(error).split())}; give a YAML file."
        ) from error
    try:
        # By way of JSON each value has to be of its own type: no truth for 1, no text for 0.9.
        return GateFile.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise InvalidInputError(
            f"The gates {path} are not valid: {'; '.join(describe_faults(error))}."
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The gates {path} are not valid: {error}; give names and numbers."
        ) from error


def resolve_limits(
    file: GateFile | None, engines: Sequence[str], given: Mapping[str, float | None]
) -> dict[str, GateLimits]:
    """The limits of each engine: those of the file, but for what the command line says.

    Args:
        file: The gate file, if there is one.
        engines: What is examined.
        given: Limits by the name of the gate, from the command line; None where it is silent.

    Raises:
        InvalidInputError: A limit is out of its range; all of them at once.
    """
    try:
        own = GateLimits.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidInputError(
            f"These limits cannot be: {'; '.join(describe_faults(error))}."
        ) from error
    section = ValidateGates() if file is None else file.validate_
    return {engine: section.of(engine).overridden_by(own) for engine in engines}
