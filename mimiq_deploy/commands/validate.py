"""``mimiq-deploy validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.gate_reports import GateReports, junit_option, markdown_option
from mimiq_deploy.commands.options import (
    check_partner,
    gates_option,
    json_option,
    output_console,
    print_json,
    run_argument,
)

if TYPE_CHECKING:
    from mimiq_deploy.comparison_data import DataKind
    from mimiq_deploy.validation import ValidationReport
    from mimiq_runtime.layer_parity import LayerReport
    from mimiq_runtime.parity import LogitParity

GATE_FAILED = 1
"""Exit code when a gate fails."""


def _check_names(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    # Not a click.Choice: the names would be imported for --help.
    from mimiq_deploy.implementations import known_implementations

    known = known_implementations()
    for name in value:
        if name not in known:
            raise click.BadParameter(f"expected one of {', '.join(known)}; got {name!r}.")
    return value


@click.command(short_help="Check parity and accuracy on pictures, as gates")
@run_argument
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("ort-cpu",),
    show_default=True,
    metavar="NAME",
    callback=_check_names,
    help="What is examined: an engine, or fp32, fp32-torch, fake-quantized, "
    "fake-quantized-float; may be given more than once.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="NAME",
    callback=_check_names,
    help="What it is compared with, by the same names; repeatable, gates look at the first. "
    "Without it the recorded answers, and on --data fp32 and the quantized torch model.",
)
@click.option(
    "--data",
    metavar="FOLDER|synthetic|noise",
    help="Pictures, for accuracy with labels: one folder a class, or labels.csv (file,label); "
    "or the run's own images, or noise. Without it the recorded images alone.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many images.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores without it.")
@click.option("--per-layer", is_flag=True, help="Show the first tensor where the two part.")
@click.option(
    "--layer-threshold",
    type=float,
    metavar="DB",
    help="With --per-layer: they part below this SQNR; 50 dB without it.",
)
@gates_option
@click.option(
    "--max-drop",
    type=float,
    help="Gate: largest loss of top-1 against full precision, in percentage points.",
)
@click.option(
    "--min-agreement",
    type=float,
    help="Gate: smallest share (0 to 1) with the same top-1 as what it is compared with.",
)
@click.option("--min-accuracy", type=float, help="Gate: smallest top-1 accuracy (0 to 1).")
@click.option("--min-sqnr", type=float, help="Gate: smallest SQNR of the logits, in dB.")
@click.option("--max-kl", type=float, help="Gate: largest KL divergence, in nats.")
@junit_option
@markdown_option
@json_option
@click.pass_context
def validate(
    context: click.Context,
    /,
    run: Path,
    engines: tuple[str, ...],
    against: tuple[str, ...],
    data: str | None,
    limit: int | None,
    batch_size: int,
    threads: int | None,
    per_layer: bool,
    layer_threshold: float | None,
    gates: Path | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Compare the engines of RUN with the torch model, and measure their accuracy.

    The result is written to parity.json in the run. Exit code 1 when a gate fails.
    """
    from mimiq_deploy.gate_file import read_gate_file, resolve_limits
    from mimiq_deploy.junit import check_there_are_gates
    from mimiq_deploy.layer_comparison import LAYER_THRESHOLD_DB
    from mimiq_deploy.validation import GateLimits, validate_run
    from mimiq_runtime.run_directory import RunDirectory

    check_partner(context, "--per-layer", "layer_threshold", present=per_layer)
    has_images = data is not None or bool(against)
    check_partner(context, "--data or --against", "limit", present=has_images)
    reports = GateReports("validate", junit, markdown, _files_read(gates, data))
    reports.check_junit()
    asked = resolve_limits(None if gates is None else read_gate_file(gates), engines, limits)
    if junit is not None:
        check_there_are_gates(asked.values())
    with reports.errors_are_told():
        report = validate_run(
            RunDirectory.open(run),
            engines,
            pictures=_source(data),
            limits=GateLimits(),
            engine_limits=asked,
            against=against,
            per_layer=per_layer,
            layer_threshold_db=LAYER_THRESHOLD_DB if layer_threshold is None else layer_threshold,
            limit_pictures=limit,
            batch_size=batch_size,
            threads=threads,
        )
    reports.write(report)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    if not report.passed:
        context.exit(GATE_FAILED)


def _files_read(gates: Path | None, data: str | None) -> list[Path]:
    """The files by name that the options say are read."""
    from mimiq_runtime.dataset import LABELS_FILE

    return [
        *([] if gates is None else [gates]),
        *([] if data is None else [Path(data) / LABELS_FILE]),
    ]


def _source(data: str | None) -> Path | DataKind | None:
    """A folder called like one of the words is written with its path: ./noise."""
    from mimiq_deploy.comparison_data import DataKind

    words = {kind.value: kind for kind in (DataKind.SYNTHETIC, DataKind.NOISE)}
    return None if data is None else words.get(data, Path(data))


def _print(report: ValidationReport) -> None:
    from mimiq_deploy.gate_sentences import describe_gate

    console = output_console()
    _print_accuracy(report)
    _print_parity(report)
    for name, reason in report.skipped.items():
        console.print(f"not compared with {name}: {reason}")
    for name, engine in report.engines.items():
        if engine.layers is not None:
            _print_layers(name, engine.layers)
    for name, engine in report.engines.items():
        for gate in engine.gates:
            verdict = "passed" if gate.passed else "FAILED"
            console.print(f"gate of {name}: {describe_gate(gate)}: {verdict}")


def _print_accuracy(report: ValidationReport) -> None:
    from rich.table import Table

    if report.data is not None and report.data.labelled:
        title = f"{report.data.n} pictures of {report.data.origin}"
        accuracy = Table("model", "top-1 %", "top-5 %", title=title)
        measured = {
            **report.references,
            **{name: engine.accuracy for name, engine in report.engines.items()},
        }
        for name, value in measured.items():
            if value is not None:
                accuracy.add_row(name, f"{100 * value.top1:.2f}", f"{100 * value.top5:.2f}")
        output_console().print(accuracy)


def _print_parity(report: ValidationReport) -> None:
    from rich.table import Table

    parity = Table(
        *("engine", "compared with", "on", "agreement %", "top-5 %"),
        *("SQNR dB", "KL nats", "max error"),
    )
    kind = "" if report.data is None else str(report.data.kind)
    for name, engine in report.engines.items():
        rows: list[tuple[str, str, LogitParity]] = []
        if engine.recorded is not None:
            rows.append(("fake-quantized", "recorded", engine.recorded))
        rows += [(reference, kind, row) for reference, row in engine.parity.items()]
        for reference, images, row in rows:
            parity.add_row(name, reference, f"{row.n} {images}", *_parity_cells(row))
    output_console().print(parity)


def _print_layers(name: str, layers: LayerReport) -> None:
    from rich.table import Table

    console = output_console()
    table = Table(
        *("tensor", "made by", "SQNR dB", "equal %"),
        title=f"{name} against {layers.against}, {layers.images} images",
    )
    for row in layers.rows:
        mark = " <--" if layers.first is not None and layers.first.tensor == row.name else ""
        sqnr = _number(row.sqnr_db, "{:.1f}", identical=row.equal == 1)
        table.add_row(row.name + mark, row.made_by, sqnr, f"{100 * row.equal:.3f}")
    console.print(table)
    for sentence in layers.sentences():
        console.print(sentence)


def _parity_cells(row: LogitParity) -> tuple[str, ...]:
    return (
        f"{100 * row.agreement:.2f}",
        f"{100 * row.top5_overlap:.2f}",
        _number(row.sqnr_db, "{:.1f}", identical=row.identical),
        _number(row.kl, "{:.2e}", identical=row.identical),
        _number(row.max_abs_error, "{:.2e}", identical=row.identical),
    )


def _number(value: float | None, form: str, *, identical: bool) -> str:
    if value is None:
        return "identical" if identical else "not finite"
    return form.format(value)
