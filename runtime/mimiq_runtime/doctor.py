"""What this machine can run, what is missing, and the command that mends it.

Imports neither torch nor onnx; ONNX Runtime is imported only to ask for its providers.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.extras import (
    ExtraState,
    State,
    describe_extras,
    installed_version,
    parse_requirement,
    satisfies,
)
from mimiq_runtime.hardware import Gpu, memory_gib, nvidia_gpus, read_cpu_instructions
from mimiq_runtime.machine import describe_machine, usable_cores
from mimiq_runtime.ort_gpu import tensorrt_mismatch
from mimiq_runtime.schema import Schema
from mimiq_runtime.session import known_engines
from mimiq_runtime.trt_library import unknown_version

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "CAPABILITIES",
    "Capability",
    "Diagnosis",
    "OnnxRuntimeState",
    "capabilities",
    "conflicts",
    "diagnose",
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

_NO_GPU = "no NVIDIA GPU found: install NVIDIA's driver, so that nvidia-smi lists one"


class OnnxRuntimeState(Schema):
    """What ONNX Runtime says of itself.

    Attributes:
        providers: Execution providers that are compiled in; whether their libraries load shows
            only when a model is opened.
        error: Why it could not be imported, or None.
        tensorrt_mismatch: Why its TensorRT provider cannot load, where it has one; or None.
    """

    providers: list[str]
    error: str | None = None
    tensorrt_mismatch: str | None = None


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
        extras: State of each extra; empty when mimiq-deploy is not installed as a distribution.
        onnxruntime: What ONNX Runtime says of itself.
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
    extras: list[ExtraState]
    onnxruntime: OnnxRuntimeState
    warnings: list[str]
    capabilities: list[Capability]


def diagnose(commands: Collection[str]) -> Diagnosis:
    """Look at this machine; takes a second at most where ``nvidia-smi`` answers at once.

    Args:
        commands: Names of the commands that this version of mimiq-deploy has.
    """
    machine = describe_machine()
    extras, gpus, onnxruntime = describe_extras(), nvidia_gpus(), _ask_onnxruntime()
    memory = memory_gib()
    return Diagnosis(
        python=platform.python_version(),
        os=machine["os"],
        cpu=machine["cpu"],
        instructions=read_cpu_instructions(),
        cores=usable_cores(),
        memory_gib=round(memory, 1) if memory is not None else None,
        gpus=gpus,
        extras=extras,
        onnxruntime=onnxruntime,
        warnings=_tensorrt_warnings(onnxruntime)
        + conflicts({name: installed_version(name) for name in _CONFLICTING}, _torch_bounds()),
        capabilities=capabilities(extras, onnxruntime, has_gpu=bool(gpus), commands=commands),
    )


def capabilities(
    extras: list[ExtraState],
    onnxruntime: OnnxRuntimeState,
    *,
    has_gpu: bool,
    commands: Collection[str],
) -> list[Capability]:
    """What a machine with these libraries can do, in the order of :data:`CAPABILITIES`.

    Args:
        extras: State of each extra.
        onnxruntime: What ONNX Runtime says of itself.
        has_gpu: Whether there is an NVIDIA GPU.
        commands: Names of the commands that this version of mimiq-deploy has.
    """
    by_name = {extra.name: extra for extra in extras}
    gpu = [] if has_gpu else [_NO_GPU]
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
        command = _COMMANDS.get(name)
        if command is None and name not in known_engines():
            missing[name].append(f"this version of mimiq-deploy has no engine {name}")
        if command is not None and command not in commands:
            missing[name].append(f"this version of mimiq-deploy has no command {command}")
    return [
        Capability(name=name, ready=not missing[name], missing=missing[name])
        for name in CAPABILITIES
    ]


def conflicts(versions: Mapping[str, str | None], torch_bounds: str = "") -> list[str]:
    """Combinations of libraries that are known not to work, one sentence each.

    Args:
        versions: Version of each of ``onnxruntime``, ``onnxruntime-gpu``, ``torch`` and
            ``torchvision``; None for what is not installed.
        torch_bounds: The versions of torch that the installed torchvision asks for.
    """
    found = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want."
        )
    torch = versions["torch"]
    if torch and versions["torchvision"] and not satisfies(torch, torch_bounds):
        found.append(
            f"torchvision {versions['torchvision']} asks for torch {torch_bounds}, and torch "
            f"{torch} is installed: importing it may fail; "
            "pip install --upgrade 'mimiq-deploy[calib]'."
        )
    return found


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


_CONFLICTING = ("onnxruntime", "onnxruntime-gpu", "torch", "torchvision")


def _torch_bounds() -> str:
    """What torchvision's own metadata ask of torch; empty when it does not say."""
    try:
        lines = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in lines:
        requirement = parse_requirement(line)
        if requirement is not None and requirement.name == "torch" and requirement.extra is None:
            return requirement.bounds
    return ""


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


def _ask_onnxruntime() -> OnnxRuntimeState:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return OnnxRuntimeState(providers=[], error="ONNX Runtime is not installed")
    # A wheel that does not fit its libraries fails in as many ways as there are loaders.
    except Exception as error:
        reason = " ".join(str(error).split())
        return OnnxRuntimeState(providers=[], error=f"ONNX Runtime cannot be imported ({reason})")
    return OnnxRuntimeState(
        providers=list(onnxruntime.get_available_providers()),
        tensorrt_mismatch=tensorrt_mismatch(),
    )
