"""``mimiq-deploy validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import (
    engines_option,
    json_option,
    output_console,
    print_json,
    run_argument,
)

if TYPE_CHECKING:
    from mimiq_deploy.validation import ValidationReport

GATE_FAILED = 1
"""Exit code when a gate fails."""


@click.command(short_help="Check parity and accuracy on pictures, as gates")
@run_argument
@engines_option
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled pictures: one folder a class, or a folder with labels.csv (file,label). "
    "Without it only the run's own images are compared.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many pictures.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores without it.")
@click.option(
    "--max-drop",
    type=float,
    help="Gate: largest loss of top-1 against full precision, in percentage points.",
)
@click.option(
    "--min-agreement",
    type=float,
    help="Gate: smallest share (0 to 1) with the same top-1 as the quantized torch model.",
)
@click.option("--min-accuracy", type=float, help="Gate: smallest top-1 accuracy (0 to 1).")
@json_option
@click.pass_context
def validate(
    context: click.Context,
    run: Path,
    engines: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    batch_size: int,
    threads: int | None,
    max_drop: float | None,
    min_agreement: float | None,
    min_accuracy: float | None,
    as_json: bool,
) -> None:
    """Compare the engines of RUN with the torch model, and measure their accuracy.

    The result is written to parity.json in the run. Exit code 1 when a gate fails.
    """
    from mimiq_deploy.validation import GateLimits, validate_run
    from mimiq_runtime.run_directory import RunDirectory

    report = validate_run(
        RunDirectory.open(run),
        engines,
        pictures=data,
        limits=GateLimits(max_drop, min_agreement, min_accuracy),
        limit_pictures=limit,
        batch_size=batch_size,
        threads=threads,
    )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    if not report.passed:
        context.exit(GATE_FAILED)


def _print(report: ValidationReport) -> None:
    from rich.table import Table

    console = output_console()
    if report.pictures is not None:
        folder, count = report.pictures
        accuracy = Table("model", "top-1 %", "top-5 %", title=f"{count} pictures of {folder}")
        measured = {
            **report.references,
            **{name: engine.accuracy for name, engine in report.engines.items()},
        }
        for name, value in measured.items():
            if value is not None:
                accuracy.add_row(name, f"{100 * value.top1:.2f}", f"{100 * value.top5:.2f}")
        console.print(accuracy)
    parity = Table(
        "engine", "compared with", "on", "agreement %", "SQNR dB", "KL nats", "max error"
    )
    for name, engine in report.engines.items():
        rows = [("fake-quantized", f"{engine.recorded.n} recorded", engine.recorded)]
        rows += [(reference, f"{row.n} pictures", row) for reference, row in engine.parity.items()]
        for reference, images, row in rows:
            parity.add_row(
                name,
                reference,
                images,
                f"{100 * row.agreement:.2f}",
                _number(row.sqnr_db, "{:.1f}", identical=row.identical),
                _number(row.kl, "{:.2e}", identical=row.identical),
                _number(row.max_abs_error, "{:.2e}", identical=row.identical),
            )
    console.print(parity)
    for name, reason in report.skipped.items():
        console.print(f"not compared with {name}: {reason}")
    for name, engine in report.engines.items():
        for gate in engine.gates:
            verdict = "passed" if gate.passed else "FAILED"
            console.print(
                f"gate {gate.name} of {name}: {gate.measured} (limit {gate.limit}) {verdict}"
            )


def _number(value: float | None, form: str, *, identical: bool) -> str:
    if value is None:
        return "identical" if identical else "not finite"
    return form.format(value)
