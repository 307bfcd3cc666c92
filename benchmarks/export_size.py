"""Time and peak memory of an export, for models of a given size with random weights.

    python benchmarks/export_size.py [--bits w4a8] [MODEL...]

For each model (``vit_base_patch16_224`` and ``swin_tiny_patch4_window7_224`` if none is given) a
run is made from two noise images and exported to ``ort-cpu`` twice: the first export writes the
full-precision ONNX too, the second finds it there. Every step has a process of its own, so that
its peak memory is its own. A model that mimiq-deploy does not support is passed over with the
reason.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_runs import make_random_run

MODELS = ("vit_base_patch16_224", "swin_tiny_patch4_window7_224")
REFUSED = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--packed-int4", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        return _run_step(arguments)
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="export-size-") as folder:
            _measure(model, arguments, Path(folder))
    return 0


def _measure(model: str, arguments: argparse.Namespace, folder: Path) -> None:
    options = ["--bits", arguments.bits, *(["--packed-int4"] if arguments.packed_int4 else [])]
    for step in STEPS:
        command = [sys.executable, __file__, model, *options, "--step", step, "--folder", folder]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if result.returncode == REFUSED:
            print(f"{model}: skipped, {result.stdout.strip()}")
            return
        result.check_returncode()
        print(f"{model}, {arguments.bits}, {step}: {_line(json.loads(result.stdout))}", flush=True)


def _line(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _run_step(arguments: argparse.Namespace) -> int:
    """One step in this process; its figures go to standard output as JSON."""
    from mimiq_runtime.errors import UnsupportedModelError

    (model,) = arguments.models
    begun, used = time.monotonic(), time.process_time()
    try:
        found = STEPS[arguments.step](model, arguments)
    except UnsupportedModelError as error:
        print(error)
        return REFUSED
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                **found,
                "seconds": round(time.monotonic() - begun, 1),
                "CPU seconds": round(time.process_time() - used, 1),
                "peak GiB": round(kilobytes / 2**20, 2),
            }
        )
    )
    return 0


def _calibrate(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    weights = make_random_run(model, arguments.bits, arguments.folder)
    return {"million weights": round(weights / 1e6, 1)}


def _export(_model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from mimiq_deploy.exporting import export_run
    from mimiq_runtime.run_directory import RunDirectory

    run = RunDirectory.open(arguments.folder / "run")
    record = export_run(run, "ort-cpu", packed_int4=arguments.packed_int4)
    return {"ONNX MB": round(record.onnx.bytes / 1e6, 1)}


STEPS = {"calibrate": _calibrate, "first export": _export, "second export": _export}


if __name__ == "__main__":
    sys.exit(main())
