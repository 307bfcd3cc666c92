"""A TensorRT plan in a run, as ``mimiq-deploy build`` records it; its content is nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mimiq_runtime.cuda_device import CudaDevice
from mimiq_runtime.engine_record import BuildOptions, EngineRecord, ShapeProfile
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.precision_report import PrecisionReport

if TYPE_CHECKING:
    from mimiq_runtime.run_directory import RunDirectory

PLAN = b"a plan"


def add_plan(
    run: RunDirectory,
    *,
    gpu: str = "Orin",
    capability: str = "8.7",
    target: str = "trt",
    weights: str = "in the plan",
    **options: Any,
) -> str:
    """Write the plan of a device and its record; the name of the device's folder."""
    device = CudaDevice(
        name=gpu, compute_capability=capability, cuda_driver="12.8", cuda_runtime="12.8"
    )
    record = EngineRecord(
        created="2026-01-02T03:04:05+00:00",
        device=device,
        libraries={"tensorrt": "10.3.0", "polygraphy": "0.49.20"},
        onnx=f"export/{target}/model.onnx",
        onnx_sha256="0" * 64,
        options=BuildOptions(**options),
        profile=ShapeProfile(input="images", min=(1, 3, 8, 8), opt=(8, 3, 8, 8), max=(32, 3, 8, 8)),
        timing_cache_sha256=None,
        build_seconds=1.0,
        weights=weights,
        plan=FileRecord(sha256=hashlib.sha256(PLAN).hexdigest(), bytes=len(PLAN)),
        precision=PrecisionReport(
            proved=True, products=[], floating_point=[], kernels={}, reformats=0, layers=[]
        ),
    )
    folder = f"engines/{device.slug}/{target}"
    path = run.path(f"{folder}/engine.plan")
    path.parent.mkdir(parents=True)
    path.write_bytes(PLAN)
    run.record_files(f"{folder}/engine.plan")
    run.write_json(f"{folder}/engine.json", record.model_dump(mode="json"))
    return device.slug
