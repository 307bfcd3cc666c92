"""The state of a distillation between two epochs, as safetensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_runtime.atomic import atomic_path
from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_checkpoint", "save_checkpoint"]

MODEL, OPTIMIZER = "model:", "optimizer:"

_FAULTS = (
    *(SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError),
    InvalidInputError,  # codes that are no grid
)


def save_checkpoint(
    path: Path, student: nn.Module, optimizer: torch.optim.Optimizer, *, next_epoch: int
) -> None:
    """Write parameters, grids and optimiser state atomically.

    Args:
        path: The file.
        student: The model in training, scales in the logarithm.
        optimizer: Its optimiser.
        next_epoch: The epoch that comes next.
    """
    tensors = {MODEL + name: value for name, value in student.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            # SGD keeps None until it has a momentum.
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}:{key}"] = value
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(
            contiguous,
            temporary,
            metadata={"next_epoch": str(next_epoch), "grids": json.dumps(_grids_of(student))},
        )


def load_checkpoint(path: Path, student: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what :func:`save_checkpoint` wrote.

    Returns:
        The epoch that comes next.

    Raises:
        RunDirectoryError: The file is missing, damaged or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            next_epoch = int(metadata["next_epoch"])
            grids = json.loads(metadata["grids"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        student.load_state_dict(_with_prefix(tensors, MODEL))
        for quantizer in quantizers_of(student):
            quantizer.grid = Grid(*grids[quantizer.name])
        content = optimizer.state_dict()
        content["state"] = {}
        for name, value in _with_prefix(tensors, OPTIMIZER).items():
            index, key = name.split(":")
            content["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(content)
    except _FAULTS as error:
        raise RunDirectoryError(
            f"{path} does not hold the state of this distillation ({error}); "
            "remove it to distil from the first epoch."
        ) from error
    return next_epoch


def _grids_of(student: nn.Module) -> dict[str, tuple[int, int]]:
    return {q.name: (q.grid.qmin, q.grid.qmax) for q in quantizers_of(student)}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
