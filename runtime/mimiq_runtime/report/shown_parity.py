"""What the report shows of ``parity.json``; the rest of that file is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.gates import GateResult
from mimiq_runtime.parity import LogitParity
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    from mimiq_runtime.run_directory import RunDirectory

__all__ = [
    "FULL_PRECISION_REFERENCE",
    "ShownAccuracy",
    "ShownEngine",
    "ShownParity",
    "read_parity",
]

FULL_PRECISION_REFERENCE = "full-precision"
"""The name that ``validate`` gives to the model before quantization."""

PARITY = "parity.json"


class _Shown(Schema):
    # A validation may record more, today or later, than a report shows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class ShownAccuracy(_Shown):
    """Shares of the pictures, 0 to 1."""

    top1: float
    top5: float


class ShownSession(_Shown):
    """What ran."""

    provider: str
    libraries: dict[str, str] = Field(default_factory=dict)
    threads: int | None = None


class ShownEngine(_Shown):
    """One engine, compared."""

    session: ShownSession
    recorded: LogitParity | None = None
    parity: dict[str, LogitParity] = Field(default_factory=dict)
    accuracy: ShownAccuracy | None = None
    gates: list[GateResult] = Field(default_factory=list)


class ShownParity(_Shown):
    """The last validation."""

    machine: dict[str, str]
    pictures: tuple[str, int] | None = None
    references: dict[str, ShownAccuracy] = Field(default_factory=dict)
    skipped: dict[str, str] = Field(default_factory=dict)
    engines: dict[str, ShownEngine]


def read_parity(run: RunDirectory) -> ShownParity | None:
    """The last validation of a run; None where there was none.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    if PARITY not in run.manifest.files:
        return None
    path = run.existing(PARITY, made_by="mimiq-deploy validate")
    try:
        return read_schema(ShownParity, path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {reason_of(error)}; validate again."
        ) from error
