from __future__ import annotations

import functools

import pytest
from _helpers.tiny_students import (
    INPUT_SIZE,
    Exported,
    tiny_student,
    tiny_swin_student,
    tiny_swin_teacher,
    tiny_teacher,
    tiny_vit,
)

from mimiq_export.export_run import export_model
from mimiq_export.provenance import ExportProvenance
from mimiq_runtime.manifest import Preprocessing

PREPROCESSING = Preprocessing(input_size=INPUT_SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def provenance_of(bits: str) -> ExportProvenance:
    return ExportProvenance(
        version="0.1.0",
        run_id="9f86d081884c7d65",
        model="vit_tiny_patch16_224",
        bits=bits,
        recipe="quick",
        preprocessing=PREPROCESSING,
    )


@pytest.fixture(scope="session")
def provenance() -> ExportProvenance:
    return provenance_of("w4a4")


@functools.cache
def _exported(weight_bits: int, activation_bits: int, skewed: bool = False) -> Exported:
    student = tiny_student(weight_bits, activation_bits, skewed=skewed)
    bits = f"w{weight_bits}a{activation_bits}"
    graph = export_model(student, target="ort-cpu", provenance=provenance_of(bits))
    return Exported(student, graph, tiny_teacher())


@functools.cache
def _exported_swin(weight_bits: int, activation_bits: int) -> Exported:
    student = tiny_swin_student(weight_bits, activation_bits)
    bits = f"w{weight_bits}a{activation_bits}"
    graph = export_model(student, target="ort-cpu", provenance=provenance_of(bits))
    return Exported(student, graph, tiny_swin_teacher())


@pytest.fixture(scope="session")
def exported_teacher() -> Exported:
    teacher = tiny_teacher()
    graph = export_model(teacher, target="fp32", provenance=provenance_of("fp32"))
    return Exported(teacher, graph, tiny_vit())


@pytest.fixture(scope="session")
def exported_w4a4() -> Exported:
    return _exported(4, 4)


@pytest.fixture(
    scope="session",
    params=[(8, 8), (4, 4), (2, 3), (8, 8, True), (4, 4, True), ("swin", 8, 8)],
    ids=["w8a8", "w4a4", "w2a3", "w8a8-skewed", "w4a4-skewed", "swin-w8a8"],
)
def exported(request: pytest.FixtureRequest) -> Exported:
    family, *bits = request.param
    return _exported_swin(*bits) if family == "swin" else _exported(*request.param)
