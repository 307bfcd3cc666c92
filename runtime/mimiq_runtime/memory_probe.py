"""Peak memory of an engine, measured in a process of its own.

In the process that measures the speed all engines share one memory, and none of it can be told
apart. ``python -m mimiq_runtime.memory_probe`` is the child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mimiq_runtime.errors import EngineError
from mimiq_runtime.peak_memory import peak_rss_mib
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PeakMemory", "measure_peak_memory"]

_TIMEOUT_S = 900


class PeakMemory(Schema):
    """Memory of a fresh process that opens one session and runs one batch.

    Attributes:
        session: Name of the session.
        batch_size: Images in the batch.
        threads: CPU threads that the session was given; None in reports of earlier versions.
        peak_rss_mib: Largest resident memory in MiB, with Python, numpy and the engine's library;
            memory of a GPU is not in it.
    """

    session: str
    batch_size: int
    threads: int | None = None
    peak_rss_mib: float


def measure_peak_memory(
    session: str,
    engine: str,
    model: Path,
    *,
    batch_sizes: Sequence[int],
    input_shape: tuple[int, int, int],
    threads: int,
) -> list[PeakMemory]:
    """Open a model in a new process, and run one batch of each size, the smallest first.

    Args:
        session: Name for the result.
        engine: Name of the engine.
        model: What it opens.
        batch_sizes: Images in one call.
        input_shape: Channels, height and width of the images.
        threads: CPU threads of the engine.

    Raises:
        EngineError: The process failed, its last line is the reason; or it took over 15 minutes.
    """
    sizes = sorted(set(batch_sizes))
    request = [engine, str(model), threads, list(input_shape), sizes]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mimiq_runtime.memory_probe", json.dumps(request)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"The memory of {session} could not be measured: opening it and one batch of "
            f"{sizes[-1]} took over {_TIMEOUT_S} s; measure with a smaller --batch-size."
        ) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise EngineError(f"The memory of {session} could not be measured: {lines[-1]}")
    peaks = json.loads(done.stdout.splitlines()[-1])
    return [
        PeakMemory(session=session, batch_size=size, threads=threads, peak_rss_mib=peak)
        for size, peak in zip(sizes, peaks, strict=True)
    ]


def _main() -> None:
    from mimiq_runtime.input_form import random_images
    from mimiq_runtime.session import open_session

    engine, model, threads, shape, sizes = json.loads(sys.argv[1])
    peaks = []
    with open_session(engine, Path(model), threads=threads) as session:
        for size in sizes:
            session.run(random_images(session.info.takes, size, tuple(shape), seed=0))
            peaks.append(round(peak_rss_mib(), 1))
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main()
