"""What computes a run's model, by name: engines, and the models they are compared with."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from typing import TYPE_CHECKING

from mimiq_deploy.engine_models import engine_model
from mimiq_deploy.exporting import BASELINE, exported_scope
from mimiq_runtime.errors import MissingDependencyError
from mimiq_runtime.scope import Scope
from mimiq_runtime.session import known_engines, open_session, target_of

if TYPE_CHECKING:
    from torch import nn

    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.session import Session

__all__ = [
    "Reference",
    "has_torch",
    "is_engine",
    "known_implementations",
    "open_implementation",
    "quantized_model",
    "scope_of",
    "title_of",
]


class Reference(StrEnum):
    """What an engine can be compared with, beside other engines.

    ``fp32``: the exported full-precision model in ONNX Runtime on the CPU. ``fp32-torch``: the
    full-precision model in torch. ``fake-quantized``: the quantized model in torch with products
    in integers, as engines compute. ``fake-quantized-float``: the same with products in floating
    point, as it was trained.
    """

    FP32 = "fp32"
    FP32_TORCH = "fp32-torch"
    FAKE_QUANTIZED = "fake-quantized"
    FAKE_QUANTIZED_FLOAT = "fake-quantized-float"

    @property
    def is_quantized(self) -> bool:
        """Whether it has quantizers."""
        return self in (Reference.FAKE_QUANTIZED, Reference.FAKE_QUANTIZED_FLOAT)


_TITLES = {
    Reference.FP32: "full-precision",
    Reference.FP32_TORCH: "full-precision, torch",
    Reference.FAKE_QUANTIZED: "fake-quantized",
    Reference.FAKE_QUANTIZED_FLOAT: "fake-quantized, floating-point products",
}


def known_implementations() -> tuple[str, ...]:
    """Names that :func:`open_implementation` takes: engines first."""
    return (*known_engines(), *(reference.value for reference in Reference))


def is_engine(name: str) -> bool:
    """Whether this is an engine, which reads what was exported for it."""
    return name in known_engines()


def scope_of(run: RunDirectory, name: str) -> Scope:
    """Which products an engine's export quantizes; all of them for what is no engine."""
    return exported_scope(run, target_of(name)) if is_engine(name) else Scope.FULL


def title_of(name: str, scope: Scope) -> str:
    """The name in reports: a quantized torch model is another one in another scope."""
    if is_engine(name):
        return name
    reference = Reference(name)
    suffix = f", {scope} scope" if reference.is_quantized and scope is not Scope.FULL else ""
    return _TITLES[reference] + suffix


def open_implementation(
    run: RunDirectory, name: str, *, scope: Scope = Scope.FULL, threads: int | None = None
) -> Session:
    """Load a run's model into what is called ``name``.

    Args:
        run: A calibrated run, exported for each engine that is asked for.
        name: One of :func:`known_implementations`.
        scope: Which products a quantized torch model quantizes.
        threads: CPU threads inside one operator of an engine.

    Raises:
        InvalidInputError: No such name, or a file of the run is missing.
        MissingDependencyError: Its library is not installed.
        EngineError: The engine cannot run here.
    """
    if is_engine(name):
        return open_session(name, engine_model(run, name), threads=threads)
    reference = Reference(name)
    if reference is Reference.FP32:
        return open_session(
            "ort-cpu", engine_model(run, "ort-cpu", target=BASELINE), threads=threads
        )
    if not has_torch():
        raise MissingDependencyError("torch with timm", "calib")
    from mimiq_calib.run_models import load_teacher
    from mimiq_calib.torch_session import TorchSession

    teacher = reference is Reference.FP32_TORCH
    model = load_teacher(run) if teacher else quantized_model(run, reference, scope)
    weights = run.MODEL if teacher else run.QUANTIZED
    return TorchSession(
        model,
        name=title_of(name, scope),
        origin=(weights, run.manifest.files[weights].sha256),
        input_shape=run.manifest.preprocessing.input_size,
    )


def quantized_model(run: RunDirectory, reference: Reference, scope: Scope) -> nn.Module:
    """The quantized torch model that a reference names, in a scope."""
    from mimiq_calib.conversion.scope import limit_scope
    from mimiq_calib.engine_arithmetic.convert import in_engine_arithmetic
    from mimiq_calib.run_models import load_student

    student = load_student(run)
    limit_scope(student, scope)
    return in_engine_arithmetic(student) if reference is Reference.FAKE_QUANTIZED else student


def has_torch() -> bool:
    """Whether the torch models can run here."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))
