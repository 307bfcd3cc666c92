"""What pip must install on the device for a bundle: the bounds of our own metadata, no more."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.extras import DISTRIBUTION, Requirement, parse_requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_deploy.bundle.packed_model import PackedModel

__all__ = ["PYTHON", "requirements_of"]

PYTHON = ">=3.11"
"""Versions of Python that run the runner."""

_EVERYWHERE = ("numpy", "pillow")


@dataclass(frozen=True)
class _Needs:
    """What an engine needs: libraries of one of our extras, and others in pip's words."""

    extra: str
    libraries: tuple[str, ...]
    others: tuple[str, ...] = ()


_NEEDS = {
    "ort-cpu": _Needs("ort", ("onnxruntime",)),
    "ort-cuda": _Needs("ort-gpu", ("onnxruntime-gpu",)),
    # PyPI's onnxruntime-gpu is linked against TensorRT 10.
    "ort-trt": _Needs("ort-gpu", ("onnxruntime-gpu",), ("tensorrt>=10.3,<11",)),
    "openvino": _Needs("openvino", ("openvino",)),
    # TensorRT itself is bound to the plan; Polygraphy builds, and does not run.
    "trt": _Needs("trt", ("cuda-python",)),
}

_INT4 = {"onnxruntime": ">=1.23"}
"""Versions that load packed INT4 weights, where they are later ones than our bounds."""


def requirements_of(model: PackedModel) -> list[str]:
    """Lines of ``requirements.txt``.

    A TensorRT plan can only be loaded by the version that built it, or by later ones if it was
    built so.

    Args:
        model: What is packed.

    Raises:
        InvalidInputError: mimiq-deploy is not installed, so that its bounds are not known.
    """
    needs, plan = _NEEDS[model.engine], model.plan
    known = list(_metadata())
    base = {item.name: item.bounds for item in known if item.extra is None}
    extra = {item.name: item.bounds for item in known if item.extra == needs.extra}
    lines = [f"{name}{base[name]}" for name in _EVERYWHERE]
    packed = _INT4 if model.packed_int4 else {}
    lines += [f"{name}{packed.get(name, extra[name])}" for name in needs.libraries]
    lines += needs.others
    if plan is not None:
        operator = ">=" if plan.options.version_compatible else "=="
        lines.append(f"tensorrt{operator}{plan.libraries['tensorrt']}")
    return lines


def _metadata() -> Iterator[Requirement]:
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise InvalidInputError(
            f"The versions that a device needs are in the metadata of {DISTRIBUTION}, which is not "
            "installed here; pip install it, rather than running its source."
        ) from error
    for line in lines:
        requirement = parse_requirement(line)
        if requirement is not None:
            yield requirement
