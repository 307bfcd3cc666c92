"""``mimiq-deploy inspect``: show what a run or an ONNX file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.findings import print_findings
from mimiq_deploy.commands.options import json_option, output_console, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mimiq_deploy.onnx_summary import OnnxSummary, TensorSummary
    from mimiq_deploy.run_summary import RunSummary, Verification
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["inspect"]


@click.command(short_help="Show what a run or an ONNX file holds")
@click.argument("path", metavar="RUN_OR_ONNX", type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=True,
    help="Compare every recorded file of a run with its SHA-256; exit code 2 on damage.",
)
@click.option(
    "--lint",
    "target",
    metavar="TARGET",
    help="Hold an ONNX file, also one made by another tool, against the rules of a target; "
    "exit code 1 on errors.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="With --lint: exit code 1 on warnings, too; for models that must run as fast and as "
    "exactly as the engine can.",
)
@json_option
@click.pass_context
def inspect(
    context: click.Context,
    path: Path,
    verify: bool,
    target: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Show what a run or an ONNX file holds.

    For a run: model, recipe, stages, files, quantizers, which products of the model are quantized
    and why others are not, and exports. For an ONNX file: operator sets, inputs and outputs,
    operators, and which of them work on quantized values. With --lint: the nodes that a target
    refuses or runs slowly, and what to do about each; docs/lint-rules.md has the rules.
    """
    from mimiq_runtime.errors import InvalidInputError

    if strict and target is None:
        raise InvalidInputError("--strict says how --lint ends; give --lint and a target, too.")
    if path.is_dir():
        if target is not None:
            raise InvalidInputError(
                f"--lint looks at an ONNX file, and {path} is a run; give the file, such as "
                f"{path / 'export' / target / 'model.onnx'}."
            )
        _inspect_run(path, verify=verify, as_json=as_json)
    elif not path.is_file():
        raise InvalidInputError(
            f"Expected a run directory or an ONNX file, and {path} does not exist; check the path."
        )
    elif verify:
        raise InvalidInputError(
            f"--verify compares a run with its records, and {path} is a file; give the run."
        )
    elif target is not None:
        context.exit(_lint(path, target, strict=strict, as_json=as_json))
    else:
        _inspect_onnx(path, as_json=as_json)


def _inspect_run(path: Path, *, verify: bool, as_json: bool) -> None:
    from mimiq_deploy.run_summary import summarise_run
    from mimiq_runtime.errors import RunDirectoryError
    from mimiq_runtime.run_directory import RunDirectory

    run = RunDirectory.open(path)
    verification = _verify(run) if verify else None
    summary = summarise_run(run, verification)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        _print_run(summary)
    if verification is not None and verification.damaged:
        raise RunDirectoryError(f"{path} is damaged: {_damage(verification)}; make them again.")


def _verify(run: RunDirectory) -> Verification:
    from mimiq_deploy.run_summary import verify_run
    from mimiq_runtime.progress import progress_bar

    with progress_bar("Verifying", len(run.manifest.files)) as advance:
        return verify_run(run, on_file=lambda path: advance(1, path))


def _damage(verification: Verification) -> str:
    parts = []
    if verification.missing:
        parts.append(f"{', '.join(verification.missing)} missing")
    if verification.changed:
        parts.append(f"{', '.join(verification.changed)} changed since recorded")
    return " and ".join(parts)


def _inspect_onnx(path: Path, *, as_json: bool) -> None:
    from mimiq_deploy.onnx_summary import summarise_onnx

    summary = summarise_onnx(path)
    if as_json:
        share = {"quantized_share": summary.quantized_share}
        print_json({**summary.model_dump(mode="json"), **share})
    else:
        _print_onnx(summary)


def _lint(path: Path, target: str, *, strict: bool, as_json: bool) -> int:
    """Print the findings; the exit code."""
    from mimiq_runtime.errors import MissingDependencyError

    try:
        from mimiq_export.lint.linters import lint_file
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx_ir", "export") from error

    findings = lint_file(path, target)
    if as_json:
        rows = [found.model_dump(mode="json") for found in findings]
        print_json({"path": str(path), "target": target, "findings": rows})
    else:
        print_findings(findings, target, all_nodes=True)
    return int(any(strict or found.severity == "error" for found in findings))


def _print_run(summary: RunSummary) -> None:
    from mimiq_deploy.estimation import describe_estimate

    model = summary.model
    labels = "named" if model.labels is not None else "without names"
    cost = summary.estimate
    _print_facts(
        {
            "run": summary.run,
            "created": summary.created,
            "model": f"{model.name}, {model.num_classes} classes {labels}, from {model.weights}",
            "bits": summary.bits,
            "recipe": str(summary.recipe.get("name", "without a name")),
            "seed": str(summary.seed),
            "preprocessing": _preprocessing(summary),
            "estimate": (
                "none was made" if cost is None else describe_estimate(cost, summary.bits)
            ),
            **_writer(summary),
            **({"last event": str(summary.last_event)} if summary.last_event else {}),
        }
    )
    _print_table(
        "Stages",
        ("stage", "state", "seconds"),
        [(name, stage.state, f"{stage.seconds:.1f}") for name, stage in summary.stages.items()],
    )
    _print_table(
        "Quantizers",
        ("kind", "bits", "count", "zero point", "smallest scale", "largest scale"),
        [
            (
                group.kind,
                str(group.bits),
                str(group.quantizers),
                str(group.with_zero_point),
                f"{group.smallest_scale:.3g}",
                f"{group.largest_scale:.3g}",
            )
            for group in summary.quantizers or []
        ],
    )
    _print_table(
        "Products",
        ("kind", "quantized", "all", "those that are not, and why"),
        [
            (
                group.kind,
                str(group.quantized),
                str(group.products),
                "; ".join(f"{other.name}: {other.reason}" for other in group.others) or "-",
            )
            for group in summary.coverage or []
        ],
    )
    _print_table(
        "Errors of the blocks on held-out images",
        ("block", "SQNR dB"),
        [
            (row.block, "-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}")
            for row in (cost.blocks if cost is not None else [])
        ],
    )
    _print_table(
        "Exports",
        ("target", "file", "size", "state"),
        [
            (
                export.target,
                export.path,
                _size(export.bytes),
                "done" if export.finished else "not finished",
            )
            for export in summary.exports
        ],
    )
    _print_files(summary)


def _writer(summary: RunSummary) -> dict[str, str]:
    if summary.writer is None:
        return {}
    end = {
        True: "it was interrupted",
        False: "it is at work",
        None: "it is on another machine",
    }
    return {"writer": f"{summary.writer}; {end[summary.writer.has_ended]}"}


def _preprocessing(summary: RunSummary) -> str:
    how = summary.preprocessing
    size = " x ".join(str(side) for side in how.input_size)
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (how.mean, how.std))
    return (
        f"{size}, {how.interpolation}, crop {how.crop_pct:g} {how.crop_mode}, "
        f"mean ({mean}), std ({std})"
    )


def _print_files(summary: RunSummary) -> None:
    verification = summary.verification
    verdicts: dict[str, str] = {}
    if verification is not None:
        verdicts = dict.fromkeys(verification.missing, "missing")
        verdicts |= dict.fromkeys(verification.changed, "changed")
    intact = "recorded" if verification is None else "intact"
    rows = []
    for file in summary.files:
        state = "missing" if file.bytes is None else intact if file.recorded else "not recorded"
        size = _size(file.bytes) if file.bytes is not None else "-"
        rows.append((file.path, size, verdicts.get(file.path, state)))
    _print_table("Files", ("file", "size", "state"), rows)
    if verification is not None:
        _print_verdict(verification)


def _print_verdict(verification: Verification) -> None:
    intact = verification.checked - len(verification.damaged)
    others = verification.unrecorded
    unknown = f"; not recorded, of no account: {', '.join(others)}" if others else ""
    output_console().print(f"{intact} of {verification.checked} files are as recorded{unknown}.")


def _print_onnx(summary: OnnxSummary) -> None:
    share = summary.quantized_share
    facts = {
        "file": summary.path,
        "size": _size(summary.bytes),
        "producer": summary.producer or "unknown",
        "format": f"IR version {summary.ir_version}",
        "operator sets": ", ".join(f"{name} {opset}" for name, opset in summary.opsets.items()),
        "inputs": "; ".join(_tensor(value) for value in summary.inputs),
        "outputs": "; ".join(_tensor(value) for value in summary.outputs),
        "quantized": "nothing to quantize" if share is None else f"{share:.1%} of the operators",
    }
    if summary.external_data:
        facts["external data"] = ", ".join(summary.external_data)
    _print_facts(facts)
    _print_table(
        "Quantized operators (both operands from DequantizeLinear)",
        ("operator", "quantized", "all", "those that are not"),
        [
            (row.operator, str(row.quantized), str(row.total), ", ".join(row.others) or "-")
            for row in summary.quantization
        ],
    )
    _print_table(
        "Operators",
        ("operator", "count"),
        [(name, str(count)) for name, count in summary.operators.items()],
    )
    _print_table("Metadata", ("key", "value"), summary.metadata.items())


def _tensor(value: TensorSummary) -> str:
    axes = ["?" if size is None else str(size) for size in value.shape or []]
    shape = f"({', '.join(axes)})" if value.shape is not None else "of unknown shape"
    return f"{value.name}: {value.type} {shape}"


def _print_facts(facts: dict[str, str]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    output_console().print(table)


def _print_table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table; nothing when it has no rows."""
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        output_console().print(table)


def _size(count: int) -> str:
    """Bytes in the unit that leaves at most four digits before the point."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"
