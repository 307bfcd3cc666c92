"""How a build ended, and how ``build`` and ``export --trt`` say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mimiq_deploy.commands.findings import print_findings
from mimiq_deploy.commands.options import output_console

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mimiq_export.lint.finding import Finding
    from mimiq_runtime.engine_record import BuildOptions, EngineRecord
    from mimiq_runtime.errors import DeviceNeededError

__all__ = ["Built", "HandedOver", "build_or_hand_over"]

_LINTER = "trt"

_NOT_PROVED = 1
"""Exit code when a quantized product is not shown to run in INT8."""


@dataclass(frozen=True)
class Built:
    """TensorRT built an engine here.

    Attributes:
        record: How, and what it computes in INT8.
        path: The engine, or the record of one that was not written.
    """

    record: EngineRecord
    path: Path

    @property
    def exit_code(self) -> int:
        """0, or 1 where INT8 is not proved."""
        from mimiq_runtime.engine_record import PLAN

        return 0 if self.path.name == PLAN else _NOT_PROVED

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), **self.record.model_dump(mode="json")}

    def print(self, *, with_lint: bool) -> None:
        """For people. The lint says nothing that the engine has not shown."""
        _print(self.record, self.path)


@dataclass(frozen=True)
class HandedOver:
    """The rest is for the device.

    Attributes:
        error: Why, and what to run there.
        findings: What TensorRT's linter says of the ONNX; None where it cannot be asked.
    """

    error: DeviceNeededError
    findings: Sequence[Finding] | None

    @property
    def exit_code(self) -> int:
        """3."""
        return self.error.exit_code

    def described(self) -> dict[str, Any]:
        """For JSON."""
        error = self.error
        lint = (
            None
            if self.findings is None
            else [found.model_dump(mode="json") for found in self.findings]
        )
        facts = {"reason": error.reason, "onnx": error.onnx, "command": error.command}
        return {**facts, "lint": lint}

    def print(self, *, with_lint: bool) -> None:
        """For people."""
        click.echo(self.error.reason)
        click.echo(f"ONNX: {self.error.onnx}")
        if with_lint and self.findings is not None:
            print_findings(self.findings, _LINTER)
        elif with_lint:
            command = f"mimiq-deploy inspect {self.error.onnx} --lint {_LINTER}"
            click.echo(f"Lint: pip install 'mimiq-deploy[export]', then {command}")
        # A line of its own, so that it can be copied whatever the width of the terminal.
        click.echo("Run on the device, with the same folder there:")
        click.echo(f"  {self.error.command}")


def build_or_hand_over(model: Path, options: BuildOptions, **choices: Any) -> Built | HandedOver:
    """Build an engine, or find out what is left to the device.

    Args:
        model: As for :func:`mimiq_deploy.building.build_model`.
        options: As there.
        choices: Its other arguments.

    Raises:
        InvalidInputError: As there.
        EngineError: As there.
    """
    from mimiq_deploy.building import build_model
    from mimiq_runtime.errors import DeviceNeededError

    try:
        return Built(*build_model(model, options, **choices))
    except DeviceNeededError as error:
        return HandedOver(error, _lint(error.onnx))


def _lint(onnx: str) -> Sequence[Finding] | None:
    """What the linter says of a file; None where it is not installed."""
    from pathlib import Path

    try:
        from mimiq_export.lint.linters import lint_file
    except ImportError:
        return None
    return lint_file(Path(onnx), _LINTER)


def _print(record: EngineRecord, path: Path) -> None:
    from rich.table import Table

    from mimiq_runtime.engine_record import PLAN

    console = output_console()
    precision = record.precision
    table = Table("product", "kind", "runs in", "evidence", "kernel")
    for proof in precision.unproved():
        table.add_row(proof.product, proof.kind, proof.verdict, proof.evidence, proof.kernel or "-")
    proved = len(precision.products) - len(precision.unproved())
    console.print(f"{proved} of {len(precision.products)} quantized products run in INT8")
    if table.row_count:
        console.print(table)
    for name in precision.floating_point:
        console.print(f"  in floating point by the model: {name}")
    fused = sum(proof.fused_attention for proof in precision.products)
    console.print(
        f"kernels that multiply: {_counts(precision.kernels)}; {fused} products in fused "
        f"attention; {precision.reformats} layers only convert data"
    )
    if path.name == PLAN:
        console.print(
            f"{path}: {record.plan.bytes / 1e6:.2f} MB, weights {record.weights}, "
            f"built in {record.build_seconds:.0f} s for {record.device.name}"
        )
    else:
        console.print(
            f"No engine was written, see {path}; --allow-floating-point accepts it as it is."
        )


def _counts(kernels: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in kernels.items()) or "none"
