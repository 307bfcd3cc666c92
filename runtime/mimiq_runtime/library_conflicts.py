"""Combinations of installed libraries that are known not to work."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from mimiq_runtime.extras import installed_version, parse_requirement, satisfies

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONFLICTING", "conflicts", "installed_conflicts"]

CONFLICTING = (
    *("onnxruntime", "onnxruntime-gpu", "torch", "torchvision"),
    *("tensorrt-cu12", "tensorrt-cu13"),
)
"""Libraries whose versions :func:`conflicts` looks at, as pip knows them."""


def installed_conflicts(cuda: str | None) -> list[str]:
    """:func:`conflicts` of what is installed here.

    Args:
        cuda: Newest CUDA that the driver supports, such as ``12.8``; None without a driver.
    """
    versions = {name: installed_version(name) for name in CONFLICTING}
    return conflicts(versions, torch_bounds=_torch_bounds(), cuda=cuda)


def conflicts(
    versions: Mapping[str, str | None], *, torch_bounds: str = "", cuda: str | None = None
) -> list[str]:
    """Combinations of libraries that are known not to work, one sentence each.

    Args:
        versions: Version of each of :data:`CONFLICTING`; None for what is not installed.
        torch_bounds: The versions of torch that the installed torchvision asks for.
        cuda: Newest CUDA that the driver supports, such as ``12.8``; None without a driver.
    """
    found = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "
            "'mimiq-deploy[ort-gpu]' for a GPU, or 'mimiq-deploy[ort]' without."
        )
    torch = versions["torch"]
    if torch and versions["torchvision"] and not satisfies(torch, torch_bounds):
        found.append(
            f"torchvision {versions['torchvision']} asks for torch {torch_bounds}, and torch "
            f"{torch} is installed: importing it may fail; "
            "pip install --upgrade 'mimiq-deploy[calib]'."
        )
    return found + _tensorrt_conflicts(versions, cuda)


def _tensorrt_conflicts(versions: Mapping[str, str | None], cuda: str | None) -> list[str]:
    """TensorRT's wheels are made for one major version of CUDA each, in one folder all of them."""
    old, new = versions["tensorrt-cu12"], versions["tensorrt-cu13"]
    if old and new:
        both = " ".join(
            f"tensorrt-{made_for}{part}"
            for made_for in ("cu12", "cu13")
            for part in ("", "-libs", "-bindings")
        )
        sentence = (
            f"tensorrt-cu12 {old} and tensorrt-cu13 {new} are both installed and overwrite each "
            f"other's files: pip uninstall -y tensorrt {both}, then pip install the one for the "
            "driver's CUDA."
        )
        return [sentence]
    if new and cuda is not None and int(cuda.partition(".")[0]) < 13:
        sentence = (
            f"tensorrt-cu13 {new} is made for CUDA 13, and NVIDIA's driver here supports CUDA "
            f"{cuda}: update the driver, or pip uninstall -y tensorrt tensorrt-cu13, then "
            "pip install tensorrt-cu12 'cuda-python<13'."
        )
        return [sentence]
    return []


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
