"""The command ``mimiq-deploy``: a group whose subcommands are imported when they are called.

Exit codes: 0 done; 1 a gate or a requirement is not met; 2 the user's mistake or something
missing, said in one sentence; 3 done as far as this machine can, and the command for the device is
printed; 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mimiq_deploy.one_voice import one_voice, several_processes
from mimiq_runtime.errors import InvalidInputError, MimiqDeployError
from mimiq_runtime.printable import one_sentence, printable

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["COMMANDS", "KEPT", "LazyCommand", "LazyGroup", "cli", "main"]

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM: 128 and the number of the signal, as shells have it."""


KEPT = f"{__name__}.kept"
"""Key in click's ``meta`` of a function that says whether a command has left anything to keep."""


class Terminated(BaseException):
    """SIGTERM came; as with Ctrl-C, what is half written is removed on the way out."""


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is, and what the overview says about it.

    Attributes:
        module: The module that defines a click command of the same name as here.
        help: The command's short help, repeated so that the overview imports no command.
        shares_work: Whether the processes that torchrun starts share its work.
        again: How to go on when it was interrupted.
    """

    module: str
    help: str
    shares_work: bool = False
    again: str = "run the same command again"


COMMANDS = {
    "calibrate": LazyCommand(
        "mimiq_deploy.commands.calibrate",
        "Quantize a model without any of its training data",
        shares_work=True,
        again="run the same command with --resume to go on",
    ),
    "export": LazyCommand("mimiq_deploy.commands.export", "Write the ONNX model of a run"),
    "build": LazyCommand(
        "mimiq_deploy.commands.build", "Build a TensorRT engine on this device, and prove its INT8"
    ),
    "validate": LazyCommand(
        "mimiq_deploy.commands.validate", "Check parity and accuracy on pictures, as gates"
    ),
    "bench": LazyCommand(
        "mimiq_deploy.commands.bench", "Measure latency and throughput beside the baselines"
    ),
    "study": LazyCommand(
        "mimiq_deploy.commands.study",
        "Measure what each choice of the method is worth, in one table",
    ),
    "report": LazyCommand(
        "mimiq_deploy.commands.report", "Write one HTML page about one run or several"
    ),
    "predict": LazyCommand(
        "mimiq_deploy.commands.predict", "Classify pictures with a run's exported model"
    ),
    "bundle": LazyCommand(
        "mimiq_deploy.commands.bundle", "Pack a model with its runner for a device, or for Triton"
    ),
    "inspect": LazyCommand(
        "mimiq_deploy.commands.inspect", "Show what a run or an ONNX file holds"
    ),
    "doctor": LazyCommand(
        "mimiq_deploy.commands.doctor", "Show what this machine can run and what is missing"
    ),
    "demo": LazyCommand("mimiq_deploy.commands.demo", "Tell the whole story on built-in real data"),
}
"""The commands, in the order of the overview."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called.

    It also turns what the project raises on purpose, and Ctrl-C, into one sentence and an exit
    code, so that every command may simply raise.

    Args:
        table: Where each command is, by name.
        arguments: What :class:`click.Group` takes.
    """

    def __init__(self, *, table: dict[str, LazyCommand], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.table = table

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse words that are not text, such as file names in another encoding."""
        for word in args:
            if not _is_text(word):
                ctx.fail(f"{printable(word)[:200]} is not UTF-8; rename the file.")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        entry = self.table.get(cmd_name)
        return None if entry is None else _load(cmd_name, entry.module)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to call; a mistyped name is answered with the one that is nearest."""
        name = args[0]
        if name not in self.table and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.table, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        if several_processes() and name in self.table and not self.table[name].shares_work:
            sharing = ", ".join(known for known, entry in self.table.items() if entry.shares_work)
            raise InvalidInputError(
                f"{name} is the work of one process, and torchrun started "
                f"{os.environ['WORLD_SIZE']}: call it without torchrun, which is for {sharing}."
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview from the table, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; one sentence and an exit code for what it raises on purpose."""
        try:
            return super().invoke(ctx)
        except MimiqDeployError as error:
            _report(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:
            # click ends quietly where the reader of a pipe has gone.
            if error.errno == errno.EPIPE:
                raise
            _report(_refusal(error))
            ctx.exit(InvalidInputError.exit_code)
        except KeyboardInterrupt:
            self._report_interruption(ctx, "Interrupted")
            ctx.exit(INTERRUPTED)
        except Terminated:
            self._report_interruption(ctx, "Terminated")
            ctx.exit(TERMINATED)

    def _report_interruption(self, ctx: click.Context, what: str) -> None:
        entry = self.table.get(ctx.invoked_subcommand or "")
        again = LazyCommand.again if entry is None else entry.again
        kept = ctx.meta.get(KEPT)
        if kept is not None and not kept():
            _report(f"{what}; nothing was written: {LazyCommand.again}.")
            return
        _report(f"{what}; what was finished is kept: {again}.")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _is_text(word: str) -> bool:
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _report(message: str) -> None:
    """Print an error on standard error, in one line."""
    click.echo(f"Error: {one_sentence(message)}", err=True)


def _refusal(error: OSError) -> str:
    """What the system refused, where no command foresaw it: a name too long, a disk that fails."""
    place = "" if error.filename is None else f" {str(error.filename)[:200]}"
    return f"The system cannot use{place}: {error.strerror or error}; check the path and the disk."


def _load(name: str, module: str) -> click.Command:
    """The click command called ``name`` that a module defines.

    It is found by its name in the command line, so that a module may call the function as it
    likes where the name is one of Python's own.
    """
    for value in vars(importlib.import_module(module)).values():
        if isinstance(value, click.Command) and value.name == name:
            return value
    raise LookupError(f"{module} defines no click command named {name!r}.")


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="mimiq-deploy", message="%(prog)s %(version)s")
def cli() -> None:
    r"""Low-bit vision transformers without training data: from checkpoint to edge engine.

    A run is one directory that every command reads and adds to:

    \b
      mimiq-deploy calibrate deit_tiny_patch16_224 -o run
      mimiq-deploy export run --target ort-cpu
      mimiq-deploy validate run --engine ort-cpu
    """


def main() -> None:
    """Run the command line and exit; the entry point of ``mimiq-deploy``.

    A reader that closes the pipe, such as ``head``, ends it quietly. Of several processes only
    the first one prints.
    """
    # torchrun ends processes by SIGTERM when another one fails, and speaks for them itself.
    if not several_processes():
        signal.signal(signal.SIGTERM, _terminate)
    with one_voice():
        try:
            cli.main(prog_name="mimiq-deploy")
        except Terminated:
            # A moment before the command began, or after it ended.
            begun = next((word for word in sys.argv[1:] if word in COMMANDS), "")
            again = COMMANDS[begun].again if begun else LazyCommand.again
            _report(f"Terminated; what was finished is kept: {again}.")
            sys.exit(TERMINATED)
