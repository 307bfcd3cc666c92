"""``mimiq-deploy build``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mimiq_deploy.commands.options import check_partner, json_option, print_json
from mimiq_deploy.commands.outcome_of_build import build_or_hand_over


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
@click.option(
    "--opt-batch",
    type=int,
    help="Batch to tune for; 8 without it, or the nearest that the engine takes.",
)
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
    from mimiq_runtime.engine_record import BuildOptions

    # An engine that is refitted keeps what it was built with.
    check_partner(context, "--refit", *options, "timing_cache", present=refit, without=True)
    outcome = build_or_hand_over(
        model,
        BuildOptions(**{name: value for name, value in options.items() if value is not None}),
        target=target,
        output=output,
        timing_cache=timing_cache,
        allow_floating_point=allow_floating_point,
        refit=refit,
    )
    if as_json:
        print_json(outcome.described())
    else:
        outcome.print(with_lint=True)
    context.exit(outcome.exit_code)
