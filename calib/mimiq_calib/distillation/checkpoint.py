"""The state of a training between two epochs or blocks, as safetensors."""

from __future__ import annotations

import hashlib
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

__all__ = ["load_checkpoint", "pieces_done", "save_checkpoint"]

MODEL, OPTIMIZER = "model:", "optimizer:"

_FAULTS = (
    *(SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError),
    InvalidInputError,  # codes that are no grid
)


def save_checkpoint(
    path: Path, student: nn.Module, optimizer: torch.optim.Optimizer | None, *, next_epoch: int
) -> None:
    """Write parameters, grids and optimiser state atomically.

    Args:
        path: The file.
        student: The model in training, scales in the logarithm.
        optimizer: Its optimiser; None where nothing of it is needed later.
        next_epoch: The epoch that comes next; in a reconstruction, the block.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    tensors = {MODEL + name: value for name, value in student.state_dict().items()}
    states = optimizer.state_dict()["state"] if optimizer is not None else {}
    for index, state in states.items():
        for key, value in state.items():
            # SGD keeps None until it has a momentum.
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}:{key}"] = value
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "next_epoch": str(next_epoch),
        "grids": json.dumps(_grids_of(student)),
        "sha256": _digest(contiguous),
    }
    try:
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, metadata=metadata)
    except SafetensorError as error:
        raise RunDirectoryError(
            f"Cannot write {path}: {error}; choose a folder that is writable and has room."
        ) from error


def pieces_done(path: Path) -> int:
    """Epochs, or blocks, that are done in a checkpoint; 0 where none can be read.

    For telling people: :func:`load_checkpoint` says what is wrong with a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["next_epoch"])
    except _FAULTS:
        return 0


def load_checkpoint(path: Path, student: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Restore what :func:`save_checkpoint` wrote.

    Returns:
        The epoch, or block, that comes next.

    Raises:
        RunDirectoryError: The file is missing, damaged or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            next_epoch = int(metadata["next_epoch"])
            grids = json.loads(metadata["grids"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # run.json cannot have its digest: the two would never change in one moment.
            if metadata["sha256"] != _digest(tensors):
                raise ValueError("its tensors are not those that were written")
        student.load_state_dict(_with_prefix(tensors, MODEL))
        for quantizer in quantizers_of(student):
            quantizer.grid = Grid(*grids[quantizer.name])
        if optimizer is not None:
            _load_optimizer(optimizer, _with_prefix(tensors, OPTIMIZER))
    except _FAULTS as error:
        raise RunDirectoryError(
            f"{path} does not hold the state of this training ({error}); "
            "remove it to start this stage anew."
        ) from error
    return next_epoch


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        # As bytes: numpy has no name for every type of torch.
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _grids_of(student: nn.Module) -> dict[str, tuple[int, int]]:
    return {q.name: (q.grid.qmin, q.grid.qmax) for q in quantizers_of(student)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    content = optimizer.state_dict()
    content["state"] = {}
    for name, value in tensors.items():
        index, key = name.split(":")
        content["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(content)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
