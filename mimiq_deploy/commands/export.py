"""``mimiq-deploy export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.findings import print_findings
from mimiq_deploy.commands.options import json_option, output_console, print_json, run_argument
from mimiq_deploy.commands.outcome_of_build import build_or_hand_over

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_export.record import ExportRecord

_SHOWN = 4


@click.command(short_help="Write the ONNX model of a run")
@run_argument
@click.option(
    "--target",
    metavar="NAME",
    help="Kind of engine that the ONNX is written for; ort-cpu without it.",
)
@click.option(
    "--trt",
    is_flag=True,
    help="The same as --target trt, and then build where TensorRT and a GPU are.",
)
@click.option(
    "--scope",
    type=click.Choice(["linear", "full"]),
    help="What is quantized: Linear layers and convolutions, or the products inside attention, "
    "too. Without it, what is faster on the target.",
)
@click.option(
    "--packed-int4",
    is_flag=True,
    help="Store weights of at most 4 bits as ONNX INT4, for ort-cpu and openvino (opset 21, ONNX "
    "Runtime 1.23 or later).",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Take uint8 pixels (batch, height, width, channels) and normalise them in the graph; "
    "resizing stays outside.",
)
@json_option
@click.pass_context
def export(
    context: click.Context,
    run: Path,
    target: str | None,
    trt: bool,
    scope: str | None,
    packed_int4: bool,
    with_preprocessing: bool,
    as_json: bool,
) -> None:
    """Write the quantized ONNX of RUN for a target, and the full-precision ones beside it.

    With --trt the engine is built, too, as mimiq-deploy build does it with its defaults. Exit code
    3 where TensorRT or a GPU is missing, with the command for the device.
    """
    from mimiq_deploy.exporting import export_run
    from mimiq_runtime.errors import InvalidInputError
    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.scope import Scope

    if trt and target not in (None, "trt"):
        raise InvalidInputError(f"--trt is --target trt, and --target {target} was given, too.")
    target = "trt" if trt else target or "ort-cpu"
    record = export_run(
        RunDirectory.open(run),
        target,
        scope=None if scope is None else Scope(scope),
        packed_int4=packed_int4,
        with_preprocessing=with_preprocessing,
    )
    if trt:
        _export_and_build(context, run, record, as_json=as_json)
    elif as_json:
        print_json(record.model_dump(mode="json"))
    else:
        _print(run, record)
        output_console().print(f"Next: mimiq-deploy validate {run} --engine {target}")


def _export_and_build(
    context: click.Context, run: Path, record: ExportRecord, *, as_json: bool
) -> None:
    """Print what was exported, build it, and end with the exit code of the build."""
    from mimiq_runtime.engine_record import BuildOptions

    exported = record.model_dump(mode="json")
    if not as_json:
        _print(run, record)
    outcome = build_or_hand_over(run, BuildOptions())
    if as_json:
        print_json({**exported, "build": outcome.described()})
    else:
        outcome.print(with_lint=False)
    context.exit(outcome.exit_code)


def _print(run: Path, record: ExportRecord) -> None:
    from mimiq_deploy.exporting import onnx_path
    from mimiq_runtime.input_form import InputForm

    console = output_console()
    console.print(
        f"{run / onnx_path(record.target)}: {record.onnx.bytes / 1e6:.2f} MB, opset {record.opset}"
    )
    scope_note = "" if record.scope is None else f", scope {record.scope}"
    console.print(f"  {len(record.quantized)} quantized tensors{scope_note}")
    packed = sum(row.stored_as == "int4" for row in record.quantized)
    if packed:
        console.print(f"  {packed} weights stored as INT4, two codes in a byte")
    if record.input is InputForm.PIXELS:
        console.print("  takes uint8 pixels (batch, height, width, channels)")
    for product in record.not_quantized[:_SHOWN]:
        console.print(f"  in floating point: {product.op_type} {product.node}: {product.reason}")
    if len(record.not_quantized) > _SHOWN:
        console.print(f"  and {len(record.not_quantized) - _SHOWN} more; export.json lists all")
    print_findings(record.lint, record.target)
