"""A builder of engines in the place of TensorRT and a GPU: it takes its time, and does nothing.

Its plan is that of its ONNX file, and its timing cache is written in place and in two pieces, as
TensorRT's is.
"""

from __future__ import annotations

import hashlib
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from mimiq_deploy import building
from mimiq_runtime.cuda_device import CudaDevice
from mimiq_runtime.engine_record import ShapeProfile
from mimiq_runtime.precision_report import PrecisionReport
from mimiq_runtime.trt_build import STEPS, BuiltEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_runtime.engine_record import BuildOptions

DEVICE = CudaDevice(
    name="Pretended", compute_capability="9.0", cuda_driver="13.0", cuda_runtime="13.0"
)
PAUSE = 0.05


def pretend() -> None:
    """Let ``mimiq-deploy build`` of this process find a GPU, and build this way."""
    for name in ("import_tensorrt", "import_polygraphy"):
        setattr(building, name, lambda: SimpleNamespace(__version__="11.0"))
    building.CudaRuntime = lambda: SimpleNamespace(device=lambda: DEVICE)  # type: ignore[assignment, misc]
    building.build_engine = _build


def _build(
    onnx: Path, _options: BuildOptions, *, timing_cache: Path, begin: Callable[[str], None]
) -> BuiltEngine:
    for step in STEPS:
        begin(step)
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with timing_cache.open("wb") as file:
        for piece in (b"half of it", b"and the rest"):
            file.write(piece)
            file.flush()
            time.sleep(PAUSE)
    # As Polygraphy leaves it.
    timing_cache.with_name(f"{timing_cache.name}.lock").touch()
    shape = (1, 3, 32, 32)
    return BuiltEngine(
        plan=hashlib.sha256(onnx.read_bytes()).digest() * 4096,
        profile=ShapeProfile(input="images", min=shape, opt=shape, max=shape),
        precision=PrecisionReport(
            proved=True, products=[], floating_point=[], kernels={}, reformats=0, layers=[]
        ),
        seconds=2 * PAUSE,
    )
