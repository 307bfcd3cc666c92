"""``mimiq-deploy doctor``: what this machine can run and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import json_option, output_console, print_json

if TYPE_CHECKING:
    from mimiq_runtime.doctor import Capability, Diagnosis
    from mimiq_runtime.extras import ExtraState

__all__ = ["doctor"]


@click.command(short_help="Show what this machine can run and what is missing")
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="NAME",
    help="A capability that must be ready, else exit code 1; may be given more than once.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, required: tuple[str, ...], as_json: bool) -> None:
    """Show what this machine can run and what is missing.

    Lists hardware, the optional libraries with the command that installs each, those that cannot be
    imported, combinations that are known not to work, and at the end what this machine is ready
    for. All libraries are imported, which takes some seconds. The exit code is 0 whatever is found,
    unless a capability that is named with --require is not ready.
    """
    from mimiq_deploy.cli import COMMANDS
    from mimiq_runtime.doctor import diagnose, unmet

    diagnosis = diagnose(COMMANDS)
    failed = unmet(diagnosis, required)
    if as_json:
        print_json(diagnosis.model_dump(mode="json"))
    else:
        _print_machine(diagnosis)
        _print_extras(diagnosis)
        _print_warnings(diagnosis)
        _print_capabilities(diagnosis)
    if failed:
        click.echo(f"Error: {_sentence(failed)}", err=True)
        context.exit(1)


def _sentence(failed: list[Capability]) -> str:
    parts = [f"{item.name} is not ready ({'; '.join(item.missing)})" for item in failed]
    return f"This machine lacks what was required: {'; '.join(parts)}."


def _print_machine(diagnosis: Diagnosis) -> None:
    from rich.table import Table

    memory = diagnosis.memory_gib
    table = Table.grid(padding=(0, 2))
    table.add_row("Python", diagnosis.python)
    table.add_row("OS", diagnosis.os)
    table.add_row("CPU", diagnosis.cpu)
    table.add_row("instructions", _instructions(diagnosis.instructions))
    table.add_row("cores", str(diagnosis.cores))
    table.add_row("memory", f"{memory:.1f} GiB" if memory is not None else "unknown")
    for gpu in diagnosis.gpus:
        about = (gpu.memory, f"compute capability {gpu.compute_capability}", f"driver {gpu.driver}")
        table.add_row("GPU", f"{gpu.name}, {', '.join(about)}")
    if not diagnosis.gpus:
        table.add_row("GPU", "no NVIDIA GPU found")
    cuda = diagnosis.cuda
    if cuda.version is not None:
        facts = [f"driver for CUDA {cuda.version}", f"{cuda.devices} devices", cuda.error or ""]
        table.add_row("CUDA", ", ".join(filter(None, facts)))
    ort = diagnosis.onnxruntime
    table.add_row("ONNX Runtime", ort.error or ", ".join(ort.providers))
    output_console().print(table)


def _instructions(instructions: dict[str, bool] | None) -> str:
    if instructions is None:
        return "unknown"
    have = [name for name, present in instructions.items() if present]
    lack = [name for name, present in instructions.items() if not present]
    return f"{' '.join(have) or 'none'}" + (f" (without {' '.join(lack)})" if lack else "")


def _print_extras(diagnosis: Diagnosis) -> None:
    from rich.table import Table

    table = Table("extra", "state", "libraries", "remedy", title="Extras", title_justify="left")
    for extra in diagnosis.extras:
        table.add_row(extra.name, extra.state, _libraries(extra), extra.remedy or "-")
    if table.row_count:
        output_console().print(table)


def _libraries(extra: ExtraState) -> str:
    return "\n".join(
        f"{library.name} {library.version or 'missing'} ({library.bounds or 'any'})"
        for library in extra.libraries
    )


def _print_warnings(diagnosis: Diagnosis) -> None:
    console = output_console()
    for warning in diagnosis.warnings:
        console.print(f"Warning: {warning}", style="yellow")


def _print_capabilities(diagnosis: Diagnosis) -> None:
    from rich.table import Table

    from mimiq_runtime.doctor import CAPABILITIES

    table = Table("name", "what", "ready", "missing", title_justify="left")
    table.title = "What this machine is ready for"
    for item in diagnosis.capabilities:
        ready = "yes" if item.ready else "no"
        table.add_row(item.name, CAPABILITIES[item.name], ready, "\n".join(item.missing) or "-")
    output_console().print(table)
