"""Teacher and student of a run directory, rebuilt from its files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.conversion.coverage import list_products
from mimiq_calib.hub_names import is_on_hub
from mimiq_calib.model_loading import create_model, load_weights
from mimiq_calib.recipe import Recipe
from mimiq_runtime.errors import CheckpointError, RunDirectoryError
from mimiq_runtime.quantization_table import QuantizationTable
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.schema import describe_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["load_student", "load_teacher", "recipe_of", "save_student"]

MADE_BY = "mimiq-deploy calibrate"


def recipe_of(run: RunDirectory) -> Recipe:
    """The recipe a run was made with.

    Raises:
        RunDirectoryError: It is not one that this program can read.
    """
    try:
        return Recipe.model_validate(run.manifest.recipe)
    except ValidationError as error:
        faults = "; ".join(describe_faults(error)[:3])
        raise RunDirectoryError(
            f"{run.path(run.MANIFEST)} has a recipe that is not valid: {faults}; if another "
            "version wrote it, calibrate again."
        ) from error


def load_teacher(run: RunDirectory) -> nn.Module:
    """The full-precision model with exposed attention.

    Raises:
        RunDirectoryError: The weights are missing or damaged, or the model's name is a place on a
            hub: calibration writes down what stood there.
        InvalidInputError: timm has no such model, or its arguments are not of an architecture.
    """
    record = run.manifest.model
    if is_on_hub(record.name):
        raise RunDirectoryError(
            f"{run.path(run.MANIFEST)} names the model {record.name[:80]!r}, and a run has timm's "
            "name of the architecture; calibrate again."
        )
    weights = run.read_tensors(RunDirectory.MODEL, made_by=MADE_BY)
    model = create_model(
        record.name,
        num_classes=record.num_classes,
        arguments=record.arguments,
        pretrained=False,
        values=sum(array.size for array in weights.values()),
    )
    _load(run, model, RunDirectory.MODEL, weights)
    return expose_attention(model)


def load_student(run: RunDirectory) -> nn.Module:
    """The quantized model with its learned scales, ready to run.

    Raises:
        RunDirectoryError: The run was not calibrated to its end, or a file is damaged.
    """
    student = build_student(load_teacher(run), recipe_of(run).quantization)
    learned = run.read_tensors(RunDirectory.QUANTIZED, made_by=MADE_BY)
    _load(run, student, RunDirectory.QUANTIZED, _units_of_heads(student) | learned)
    _take_grids(run, student)
    return student


def save_student(run: RunDirectory, student: nn.Module) -> None:
    """Write the student's weights and scales, and the table of its quantizers and products."""
    run.write_tensors(RunDirectory.QUANTIZED, _arrays(student.state_dict()))
    table = QuantizationTable(
        tensors=[q.describe() for q in quantizers_of(student)], products=list_products(student)
    )
    run.write_json(RunDirectory.TABLE, table.model_dump(mode="json"))


def _units_of_heads(student: nn.Module) -> dict[str, np.ndarray]:
    """What runs of versions before these units were kept leave out; only training uses them."""
    names = [name for name in student.state_dict() if name.endswith(".head_unit")]
    return _arrays({name: student.get_buffer(name) for name in names})


def _take_grids(run: RunDirectory, student: nn.Module) -> None:
    rows = {row.name: row for row in run.quantization_table().tensors}
    for quantizer in quantizers_of(student):
        if quantizer.name not in rows:
            raise RunDirectoryError(
                f"{run.path(RunDirectory.TABLE)} is damaged: it has no row {quantizer.name}."
            )
        quantizer.grid = rows[quantizer.name].grid


def _load(
    run: RunDirectory, model: nn.Module, relative: str, arrays: Mapping[str, np.ndarray]
) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        load_weights(model, tensors, origin=str(run.path(relative)))
    except CheckpointError as error:
        raise RunDirectoryError(str(error)) from error


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
