"""``mimiq-deploy export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.findings import print_findings
from mimiq_deploy.commands.options import json_option, output_console, print_json, run_argument

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 4


@click.command(short_help="Write the ONNX model of a run")
@run_argument
@click.option(
    "--target",
    default="ort-cpu",
    show_default=True,
    metavar="NAME",
    help="Kind of engine that the ONNX is written for.",
)
@click.option("--trt", "target", flag_value="trt", help="The same as --target trt.")
@click.option(
    "--scope",
    type=click.Choice(["linear", "full"]),
    help="What is quantized: Linear layers and convolutions, or the products inside attention, "
    "too. Without it, what is faster on the target.",
)
@json_option
def export(run: Path, target: str, scope: str | None, as_json: bool) -> None:
    """Write the quantized ONNX of RUN for a target, and the FP32 ONNX beside it."""
    from mimiq_deploy.exporting import export_run, onnx_path
    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.scope import Scope

    chosen = None if scope is None else Scope(scope)
    record = export_run(RunDirectory.open(run), target, scope=chosen)
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    console = output_console()
    console.print(
        f"{run / onnx_path(target)}: {record.onnx.bytes / 1e6:.2f} MB, opset {record.opset}"
    )
    scope_note = "" if record.scope is None else f", scope {record.scope}"
    console.print(f"  {len(record.quantized)} quantized tensors{scope_note}")
    for product in record.not_quantized[:_SHOWN]:
        console.print(f"  in floating point: {product.op_type} {product.node}: {product.reason}")
    if len(record.not_quantized) > _SHOWN:
        console.print(f"  and {len(record.not_quantized) - _SHOWN} more; export.json lists all")
    print_findings(record.lint, target)
    console.print(f"Next: mimiq-deploy validate {run} --engine {target}")
