"""What this machine can run, what is missing, and the command that mends it.

Libraries are really imported, in processes of their own: an installed one that cannot be loaded,
or crashes, is the illness that versions do not show.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from mimiq_runtime.cuda_runtime import cuda_version_name
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.extras import (
    ExtraState,
    State,
    describe_extras,
    installed_version,
)
from mimiq_runtime.hardware import Gpu, memory_gib, nvidia_gpus, read_cpu_instructions
from mimiq_runtime.import_probe import CUDA_DRIVER, CUDA_PROVIDER
from mimiq_runtime.library_conflicts import installed_conflicts
from mimiq_runtime.library_probe import LibraryProbe, probe_libraries
from mimiq_runtime.machine import describe_machine, usable_cores
from mimiq_runtime.ort_gpu import tensorrt_mismatch
from mimiq_runtime.schema import Schema
from mimiq_runtime.session import known_engines
from mimiq_runtime.trt_library import unknown_version

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "CAPABILITIES",
    "Capability",
    "CudaState",
    "Diagnosis",
    "OnnxRuntimeState",
    "capabilities",
    "diagnose",
    "gpu_fault",
    "unmet",
]

CAPABILITIES = {
    "calibrate": "quantize a model with `mimiq-deploy calibrate`",
    "export": "write ONNX models with `mimiq-deploy export`",
    "build-trt": "build TensorRT engines with `mimiq-deploy build`",
    "ort-cpu": "run models in ONNX Runtime on the CPU",
    "ort-cuda": "run models in ONNX Runtime on an NVIDIA GPU",
    "ort-trt": "run models in ONNX Runtime's TensorRT provider",
    "trt": "run TensorRT engines",
    "openvino": "run models in OpenVINO",
    "report": "draw figures and HTML reports with `mimiq-deploy report`",
    "demo": "play the whole story with `mimiq-deploy demo`",
}
"""What a machine may be able to do, by the name that ``--require`` takes."""

_COMMANDS = {
    "calibrate": "calibrate",
    "export": "export",
    "build-trt": "build",
    "report": "report",
    "demo": "demo",
}
"""The command that each capability is a matter of; the others are engines of the same name."""

_MODULES = {
    "calibrate": ("torch", "torchvision", "timm"),
    "export": ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript"),
    "build-trt": ("tensorrt", "cuda.bindings.runtime", "polygraphy.backend.trt"),
    "ort-cpu": (),
    "ort-cuda": (CUDA_PROVIDER,),
    "ort-trt": (CUDA_PROVIDER, "tensorrt"),
    "trt": ("tensorrt", "cuda.bindings.runtime"),
    "openvino": ("openvino",),
    "report": ("matplotlib", "jinja2"),
    "demo": ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "sklearn"),
}
"""What each capability imports, beside ONNX Runtime."""

_EXTRA_OF = {
    **dict.fromkeys(("torch", "torchvision", "timm"), "calib"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "export"),
    **dict.fromkeys(("tensorrt", "cuda.bindings.runtime", "polygraphy.backend.trt"), "trt"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    "openvino": "openvino",
    "sklearn": "demo",
}
"""The extra that brings a module; ONNX Runtime comes with two."""

_NO_GPU = "no NVIDIA GPU found: install NVIDIA's driver, so that nvidia-smi lists one"


class OnnxRuntimeState(Schema):
    """What ONNX Runtime says of itself.

    Attributes:
        providers: Execution providers that are compiled in; whether their libraries load shows
            only when a model is opened.
        error: Why it is not there or could not be imported, or None.
        tensorrt_mismatch: Why its TensorRT provider cannot load, where it has one; or None.
    """

    providers: list[str]
    error: str | None = None
    tensorrt_mismatch: str | None = None


class CudaState(Schema):
    """What NVIDIA's driver says of itself.

    Attributes:
        version: Newest CUDA that it supports, such as ``13.0``; None without a driver.
        devices: Number of GPUs that can compute.
        error: Why it cannot be used, or None.
    """

    version: str | None
    devices: int
    error: str | None


class Capability(Schema):
    """One of :data:`CAPABILITIES` on this machine.

    Attributes:
        name: Its name.
        ready: Whether everything it needs was found.
        missing: What is missing, each with what mends it; empty when ready.
    """

    name: str
    ready: bool
    missing: list[str]


class Diagnosis(Schema):
    """All that was found.

    Attributes:
        python: Version of Python.
        os: Name of the operating system.
        cpu: Name of the CPU.
        instructions: Presence of each group of instructions; None where unknown.
        cores: Logical cores that this process may use.
        memory_gib: Physical memory in GiB; None where unknown.
        gpus: NVIDIA GPUs.
        cuda: NVIDIA's driver, asked itself: ``nvidia-smi`` may list a GPU that nothing can use.
        extras: State of each extra; empty when mimiq-deploy is not installed as a distribution.
        onnxruntime: What ONNX Runtime says of itself.
        broken: Why libraries that are installed cannot be imported, by name of the module.
        warnings: Combinations that are known not to work, one sentence each.
        capabilities: What this machine can do.
    """

    python: str
    os: str
    cpu: str
    instructions: dict[str, bool] | None
    cores: int
    memory_gib: float | None
    gpus: list[Gpu]
    cuda: CudaState
    extras: list[ExtraState]
    onnxruntime: OnnxRuntimeState
    broken: dict[str, str]
    warnings: list[str]
    capabilities: list[Capability]


def diagnose(commands: Collection[str]) -> Diagnosis:
    """Look at this machine; takes as long as it takes to import the optional libraries.

    Args:
        commands: Names of the commands that this version of mimiq-deploy has.
    """
    machine = describe_machine()
    found = probe_libraries()
    extras, gpus, memory = describe_extras(), nvidia_gpus(), memory_gib()
    onnxruntime, cuda = _onnxruntime_state(found["onnxruntime"]), _cuda_state(found[CUDA_DRIVER])
    broken = {probe.name: probe.error or "" for probe in found.values() if _is_broken(probe)}
    return Diagnosis(
        python=platform.python_version(),
        os=machine["os"],
        cpu=machine["cpu"],
        instructions=read_cpu_instructions(),
        cores=usable_cores(),
        memory_gib=round(memory, 1) if memory is not None else None,
        gpus=gpus,
        cuda=cuda,
        extras=extras,
        onnxruntime=onnxruntime,
        broken=broken,
        warnings=_tensorrt_warnings(onnxruntime)
        + installed_conflicts(cuda.version)
        + [_broken(name, error) for name, error in broken.items()],
        capabilities=capabilities(
            extras, onnxruntime, gpu_fault=gpu_fault(gpus, cuda), commands=commands, broken=broken
        ),
    )


def gpu_fault(gpus: Sequence[Gpu], cuda: CudaState) -> str | None:
    """Why nothing can compute on an NVIDIA GPU here; None where it can.

    Args:
        gpus: Those that ``nvidia-smi`` lists; it may be missing on a device that has a GPU.
        cuda: What the driver says.
    """
    if cuda.devices:
        return None
    if not gpus:
        return _NO_GPU
    reason = cuda.error or "CUDA lists no device"
    return (
        f"nvidia-smi lists {gpus[0].name}, and CUDA cannot use it ({reason}): check "
        "CUDA_VISIBLE_DEVICES and the driver's libcuda; in a container, run it with --gpus all"
    )


def capabilities(
    extras: list[ExtraState],
    onnxruntime: OnnxRuntimeState,
    *,
    gpu_fault: str | None,
    commands: Collection[str],
    broken: Mapping[str, str],
) -> list[Capability]:
    """What a machine with these libraries can do, in the order of :data:`CAPABILITIES`.

    Args:
        extras: State of each extra.
        onnxruntime: What ONNX Runtime says of itself.
        gpu_fault: Why there is no NVIDIA GPU to compute on, or None.
        commands: Names of the commands that this version of mimiq-deploy has.
        broken: Why libraries that are installed cannot be imported, by name of the module.
    """
    by_name = {extra.name: extra for extra in extras}
    gpu = [] if gpu_fault is None else [gpu_fault]
    missing = {
        "calibrate": _missing_extras(by_name, "calib"),
        "export": _missing_extras(by_name, "export"),
        "build-trt": _missing_tensorrt(by_name) + gpu,
        "ort-cpu": _missing_provider(onnxruntime, "CPUExecutionProvider", "ort"),
        "ort-cuda": _missing_provider(onnxruntime, "CUDAExecutionProvider", "ort-gpu") + gpu,
        "ort-trt": _missing_provider(onnxruntime, "TensorrtExecutionProvider", "ort-gpu")
        + ([onnxruntime.tensorrt_mismatch] if onnxruntime.tensorrt_mismatch else [])
        + gpu,
        "trt": _missing_tensorrt(by_name) + gpu,
        "openvino": _missing_extras(by_name, "openvino"),
        "report": _missing_extras(by_name, "report"),
        "demo": _missing_extras(by_name, "export", "demo")
        + _missing_provider(onnxruntime, "CPUExecutionProvider", "ort"),
    }
    for name in CAPABILITIES:
        missing[name] += [
            _broken(module, broken[module]) for module in _MODULES[name] if module in broken
        ]
        command = _COMMANDS.get(name)
        if command is None and name not in known_engines():
            missing[name].append(f"this version of mimiq-deploy has no engine {name}")
        if command is not None and command not in commands:
            missing[name].append(f"this version of mimiq-deploy has no command {command}")
    return [
        Capability(name=name, ready=not missing[name], missing=missing[name])
        for name in CAPABILITIES
    ]


def unmet(diagnosis: Diagnosis, required: tuple[str, ...]) -> list[Capability]:
    """Those of the required capabilities that are not ready.

    Raises:
        InvalidInputError: There is no capability of such a name.
    """
    unknown = [name for name in required if name not in CAPABILITIES]
    if unknown:
        raise InvalidInputError(
            f"Expected one of the capabilities {', '.join(CAPABILITIES)}; got {', '.join(unknown)}."
        )
    return [item for item in diagnosis.capabilities if item.name in required and not item.ready]


def _missing_extras(extras: Mapping[str, ExtraState], *names: str) -> list[str]:
    missing = []
    for name in names:
        extra = extras.get(name)
        if extra is None:
            missing.append(f"mimiq-deploy is not installed: pip install 'mimiq-deploy[{name}]'")
        elif extra.remedy is not None:
            bad = [item.name for item in extra.libraries if item.state is not State.INSTALLED]
            missing.append(f"{', '.join(bad)} {extra.state}: {extra.remedy}")
    return missing


def _missing_tensorrt(extras: Mapping[str, ExtraState]) -> list[str]:
    missing = _missing_extras(extras, "trt")
    version = installed_version("tensorrt")
    fault = unknown_version(version) if version is not None else None
    return missing + ([fault] if fault is not None else [])


def _tensorrt_warnings(onnxruntime: OnnxRuntimeState) -> list[str]:
    """The mismatch of two versions; that TensorRT is not there at all is no conflict."""
    sentence = onnxruntime.tensorrt_mismatch
    return [sentence] if sentence is not None and installed_version("tensorrt") else []


def _missing_provider(onnxruntime: OnnxRuntimeState, provider: str, extra: str) -> list[str]:
    if provider in onnxruntime.providers:
        return []
    reason = onnxruntime.error or f"ONNX Runtime has no {provider}"
    return [f"{reason}: pip install 'mimiq-deploy[{extra}]'"]


def _is_broken(probe: LibraryProbe) -> bool:
    """Whether a library is there and cannot be loaded, for another reason than a missing driver."""
    if not probe.installed or probe.error is None or probe.name == CUDA_DRIVER:
        return False
    return not (probe.name == CUDA_PROVIDER and "libcuda.so" in probe.error)


def _broken(name: str, error: str) -> str:
    """Why a library that is installed is of no use, with what mends it."""
    if name == CUDA_PROVIDER:
        return (
            f"ONNX Runtime's CUDA provider cannot be loaded ({error}): "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    extra = _EXTRA_OF.get(name)
    again = f"'mimiq-deploy[{extra}]'" if extra is not None else name
    return f"{name} cannot be imported ({error}): pip install --force-reinstall {again}"


def _onnxruntime_state(probe: LibraryProbe) -> OnnxRuntimeState:
    if not probe.installed:
        return OnnxRuntimeState(providers=[], error="ONNX Runtime is not installed")
    if probe.error is not None:
        return OnnxRuntimeState(
            providers=[], error=f"ONNX Runtime cannot be imported ({probe.error})"
        )
    return OnnxRuntimeState(providers=list(probe.providers), tensorrt_mismatch=tensorrt_mismatch())


def _cuda_state(probe: LibraryProbe) -> CudaState:
    return CudaState(
        version=cuda_version_name(probe.version) if probe.version else None,
        devices=probe.devices or 0,
        error=probe.error,
    )
