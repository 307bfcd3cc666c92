"""``mimiq-deploy bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import (
    check_partner,
    engine_option,
    json_option,
    labels_option,
    output_console,
    print_json,
    read_labels,
    run_argument,
)

if TYPE_CHECKING:
    from mimiq_deploy.bundle.make import BundleSummary


@click.command(short_help="Pack a model with its runner for a device, or for Triton")
@run_argument
@engine_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder, or file that ends in .tar.gz, .tgz or .tar. Without it <run>-<engine>.tar.gz; "
    "with --triton the folder model_repository.",
)
@labels_option
@click.option(
    "--device",
    metavar="NAME",
    help="For trt: the folder below engines/ whose plan is packed; the only one without it.",
)
@click.option("--triton", is_flag=True, help="Write a model repository of NVIDIA's Triton instead.")
@click.option(
    "--name", metavar="NAME", help="With --triton: the model's name; model and bits without it."
)
@click.option(
    "--max-batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="With --triton: largest batch of an ONNX; a plan has its own.",
)
@click.option("--force", is_flag=True, help="Replace an earlier bundle.")
@json_option
@click.pass_context
def bundle(
    context: click.Context,
    /,
    run: Path,
    engine: str,
    output: Path | None,
    labels: Path | None,
    device: str | None,
    triton: bool,
    name: str | None,
    max_batch: int,
    force: bool,
    as_json: bool,
) -> None:
    """Pack the model that RUN was exported to for an engine, for a device without this program.

    A bundle holds the model, a runner that needs numpy, Pillow and the engine only, labels,
    requirements, and a manifest with the SHA-256 of every file, which the runner checks at each
    start. With --triton: config.pbtxt and the model, as NVIDIA's inference server reads them.
    """
    from mimiq_deploy.bundle.make import bundle_run, triton_model
    from mimiq_runtime.run_directory import RunDirectory

    check_partner(context, "--triton", "name", "max_batch", present=triton)
    check_partner(context, "--engine trt", "max_batch", present=engine == "trt", without=True)
    opened = RunDirectory.open(run)
    names = None if labels is None else read_labels(labels)
    if triton:
        output = output or Path("model_repository")
        summary = triton_model(
            opened,
            engine,
            output,
            name=name,
            max_batch=max_batch,
            labels=names,
            device=device,
            force=force,
        )
    else:
        output = output or Path(f"{run.resolve().name}-{engine}.tar.gz")
        summary = bundle_run(opened, engine, output, labels=names, device=device, force=force)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        _print(summary, triton=triton)


def _print(summary: BundleSummary, *, triton: bool) -> None:
    console = output_console()
    size = sum(record.bytes for record in summary.files.values())
    console.print(f"{summary.path}: {len(summary.files)} files, {size / 1e6:.2f} MB")
    if not summary.labels:
        console.print("  no names of classes are known; --labels gives some")
    for what, digest in (
        ("manifest.json", summary.manifest_sha256),
        (Path(summary.path).name, summary.archive_sha256),
    ):
        if digest is not None:
            console.print(f"  sha256 {digest}  {what}")
    if triton:
        console.print(f"Next: tritonserver --model-repository={Path(summary.path).resolve()}")
        return
    console.print(f"  the device needs {', '.join(summary.requires)}")
    unpack = "" if summary.archive_sha256 is None else "unpack it, "
    console.print(
        f"On the device: {unpack}pip install -r requirements.txt, python run.py PICTURE..."
    )
