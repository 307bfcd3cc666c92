"""``mimiq-deploy build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimiq_deploy.commands.options import json_option, output_console, print_json

if TYPE_CHECKING:
    from mimiq_runtime.engine_record import EngineRecord
    from mimiq_runtime.errors import DeviceNeededError

NOT_PROVED = 1
"""Exit code when a quantized product is not shown to run in INT8."""


@click.command(short_help="Build a TensorRT engine on this device, and prove its INT8")
@click.argument("model", metavar="RUN_OR_ONNX", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["trt"]),
    default="trt",
    show_default=True,
    help="The engine to build for.",
)
@click.option(
    "--target",
    default="trt",
    show_default=True,
    metavar="NAME",
    help="The export of RUN to build from; fp32 or fp16 for a baseline.",
)
@click.option("--min-batch", default=1, show_default=True, type=int, help="Smallest batch.")
@click.option("--opt-batch", default=8, show_default=True, type=int, help="Batch to tune for.")
@click.option("--max-batch", default=32, show_default=True, type=int, help="Largest batch.")
@click.option("--workspace-mib", type=int, help="Scratch memory of a kernel, in MiB.")
@click.option("--optimization-level", type=int, help="0 (quick build) to 5 (longest search).")
@click.option("--tf32", is_flag=True, help="Allow TF32 where the model is in single precision.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    help="Kernel timings of earlier builds, read and extended; one for each device without it.",
)
@click.option(
    "--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine."
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere-plus", "same-compute-capability"]),
    default="none",
    show_default=True,
    help="Let other GPUs run the engine.",
)
@click.option("--refittable", is_flag=True, help="Allow the weights to be replaced later.")
@click.option(
    "--strip-weights", is_flag=True, help="Leave the weights out of the file; --refit adds them."
)
@click.option(
    "--refit", is_flag=True, help="Build nothing; put the ONNX's weights into the engine."
)
@click.option(
    "--allow-floating-point",
    is_flag=True,
    help="Accept quantized products that are not shown to run in INT8.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the engine of an ONNX file; beside the file without it.",
)
@json_option
@click.pass_context
def build(
    context: click.Context,
    /,
    model: Path,
    engine: str,
    target: str,
    timing_cache: Path | None,
    refit: bool,
    allow_floating_point: bool,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine from RUN_OR_ONNX for the GPU of this device, without torch.

    The engine inspector then has to show that every quantized product runs in INT8. Exit code 1
    when it does not; 3 where TensorRT or a GPU is missing, with the command for the device.
    """
    from mimiq_deploy.building import build_model
    from mimiq_runtime.engine_record import PLAN, BuildOptions
    from mimiq_runtime.errors import DeviceNeededError

    try:
        record, path = build_model(
            model,
            BuildOptions(**options),
            target=target,
            output=output,
            timing_cache=timing_cache,
            allow_floating_point=allow_floating_point,
            refit=refit,
        )
    except DeviceNeededError as error:
        _print_device_needed(error, as_json=as_json)
        context.exit(error.exit_code)
    if as_json:
        print_json({"path": str(path), **record.model_dump(mode="json")})
    else:
        _print(record, path)
    if path.name != PLAN:
        context.exit(NOT_PROVED)


def _print_device_needed(error: DeviceNeededError, *, as_json: bool) -> None:
    if as_json:
        print_json({"reason": error.reason, "onnx": error.onnx, "command": error.command})
        return
    click.echo(error.reason)
    click.echo(f"ONNX: {error.onnx}")
    # A line of its own, so that it can be copied whatever the width of the terminal.
    click.echo("Run on the device, with the same folder there:")
    click.echo(f"  {error.command}")


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
