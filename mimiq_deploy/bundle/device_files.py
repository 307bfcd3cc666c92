"""Which files of ``mimiq_runtime`` a bundle takes along, as they are."""

from __future__ import annotations

from importlib import resources

from mimiq_runtime.edge.engine import LOADERS

__all__ = ["RUNNER", "device_files"]

RUNNER = "run.py"

_EVERYWHERE = (
    "__init__.py",
    "bounded_file.py",
    "edge/__init__.py",
    "edge/bundle.py",
    "edge/command.py",
    "edge/engine.py",
    "errors.py",
    "images.py",
    "input_form.py",
    "input_limits.py",
    "metrics.py",
    "preprocessing.py",
    "printable.py",
    "ranking.py",
    "strict_json.py",
)

_BESIDE = {
    "ort_model": (
        *("edge/engine_cache.py", "edge/library_errors.py", "edge/ort_providers.py"),
        "onnx_external_data.py",
    ),
    "openvino_model": ("edge/library_errors.py",),
    "trt_model": (
        *("classifier_checks.py", "cuda_runtime.py", "edge/library_errors.py"),
        "onnx_external_data.py",
    ),
}


def device_files(engine: str) -> dict[str, bytes]:
    """Content of the runner and of all modules that it imports, by their paths in the bundle.

    They are copies, so that a picture becomes the same numbers on the device as everywhere else
    (docs/decisions/0033-bundles-carry-our-own-files.md).
    """
    package = resources.files("mimiq_runtime")
    loader = LOADERS[engine]
    names = [*_EVERYWHERE, f"edge/{loader}.py", *_BESIDE[loader]]
    files = {f"mimiq_runtime/{name}": package.joinpath(name).read_bytes() for name in names}
    return {RUNNER: package.joinpath("edge/run.py").read_bytes(), **files}
