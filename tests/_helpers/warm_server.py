"""A process that has everything imported and forks the command line: a process in milliseconds.

``python warm_server.py`` reads one JSON object a line: ``{"arguments": [...], "log": path}`` forks
a process that runs ``mimiq-deploy`` with these arguments, and answers with its number; with
``"prepare": "module:function"`` that function is called in it first.
``{"wait": pid}`` answers with how it ended, as :func:`os.waitpid` says it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class WarmServer:
    """The other end; a context manager that ends the server."""

    def __init__(self) -> None:
        folders = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)},
        )

    def start(self, arguments: Sequence[object], log: Path, prepare: str | None = None) -> int:
        """Number of a new process that runs the command line; what it says goes to ``log``."""
        words = [*map(str, arguments)]
        return int(self._ask({"arguments": words, "log": str(log), "prepare": prepare}))

    def wait(self, pid: int) -> int:
        """Exit code of a process when it has ended; the negative number of the signal."""
        return os.waitstatus_to_exitcode(int(self._ask({"wait": pid})))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def _import_everything() -> None:
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch

    from mimiq_calib.distillation import distill  # noqa: F401
    from mimiq_calib.reconstruction import reconstruct  # noqa: F401
    from mimiq_calib.synthesis import sources  # noqa: F401
    from mimiq_deploy import building, calibration, exporting, reporting, validation  # noqa: F401
    from mimiq_deploy.commands import build, calibrate, export, inspect, report  # noqa: F401
    from mimiq_export import export_run  # noqa: F401
    from mimiq_export.capture import capture
    from mimiq_export.targets import registry  # noqa: F401

    torch.set_num_threads(1)
    # What torch imports only when it exports for the first time, and makes its first step: seconds
    # that every process would take again.
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2)).eval()
    capture(layers, (3, 1, 1), opset=20)
    torch.optim.AdamW(layers.parameters()).step()


def _child(arguments: list[str], log: str, prepare: str | None) -> None:
    from mimiq_deploy.cli import main

    if prepare is not None:
        module, _, function = prepare.partition(":")
        getattr(importlib.import_module(module), function)()

    # A shell that runs things in the background lets them ignore Ctrl-C; a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["mimiq-deploy", *arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _import_everything()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitpid(question["wait"], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                _child(question["arguments"], question["log"], question["prepare"])
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
