"""Mistakes that a deployment can make, put into an exported run on purpose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Array = np.ndarray

__all__ = ["change_scale", "swap_two_weights", "transpose_weight", "wrong_normalisation"]


def change_scale(model: Path, quantizer: str, factor: float = 1.05) -> None:
    """The step of an activation's grid is too large."""
    _edit(model, f"{quantizer}/scale", lambda scale: scale * np.float32(factor))


def swap_two_weights(model: Path, layer: str) -> None:
    """The largest and the smallest code of a layer's weight change places."""

    def swap(codes: Array) -> Array:
        changed = codes.copy()
        first, second = codes.argmax(), codes.argmin()
        changed.flat[first], changed.flat[second] = codes.flat[second], codes.flat[first]
        assert changed.flat[first] != codes.flat[first]
        return changed

    _edit(model, f"{layer}.weight_quantizer/codes", swap)


def transpose_weight(model: Path, layer: str) -> None:
    """Rows are written where columns belong; the shape stays."""
    _edit(model, f"{layer}.weight_quantizer/codes", lambda codes: codes.T.reshape(codes.shape))


def wrong_normalisation(run: Path) -> None:
    """Mean and standard deviation of ImageNet in the place of the model's own."""
    path = run / "run.json"
    content = json.loads(path.read_text())
    channels = content["preprocessing"]["input_size"][0]
    before = (content["preprocessing"]["mean"], content["preprocessing"]["std"])
    content["preprocessing"]["mean"] = [0.485, 0.456, 0.406][:channels]
    content["preprocessing"]["std"] = [0.229, 0.224, 0.225][:channels]
    assert before != (content["preprocessing"]["mean"], content["preprocessing"]["std"])
    path.write_text(json.dumps(content))


def _edit(path: Path, name: str, change: Callable[[Array], Array]) -> None:
    model = onnx.load(path)
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    changed = np.asarray(change(numpy_helper.to_array(tensor)), order="C")
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    onnx.save(model, path)
    # A mistake of the exporter has a right digest; a file that was changed later is refused.
    run = path.parents[2]
    RunDirectory.open(run).record_files(str(path.relative_to(run)))
