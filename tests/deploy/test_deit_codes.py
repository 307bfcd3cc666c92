"""Every code of DeiT-T on real photographs: torch against ONNX Runtime (needs MIMIQ_SHARED_DATA).

The graph is cut at its quantizers: each part gets the same codes in torch as in ONNX Runtime, so
that a difference is that of one part, and none is handed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from _helpers.onnx_graphs import Array, run_ort

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.run_models import load_student
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_export.export_run import export_model
from mimiq_export.provenance import ExportProvenance
from mimiq_runtime.dataset import iterate_batches, open_labelled_images
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir
    from torch import nn

    from mimiq_calib.quantizers.quantizer import Quantizer

pytestmark = pytest.mark.shared_data

MODEL, PATCH, PHOTOS = "deit_tiny_patch16_224", 16, 4

# First ranges alone, from few pictures: whether codes are exact does not depend on their quality.
FIRST_RANGES = (
    "synthesis.source=folder",
    "synthesis.num_images=2",
    "synthesis.batch_size=2",
    "synthesis.held_out=0",
    "synthesis.dead_leaves=0",
    "observation.num_images=2",
    "quantization.weight_range=minmax",
    "fine_tuning=none",
)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_codes_are_those_of_torch_given_the_same_input(
    bits: str, shared_data: Path, tmp_path: Path
) -> None:
    student, graph, images = exported(bits, shared_data, tmp_path)
    quantizers = {
        quantizer.name: quantizer
        for quantizer in quantizers_of(student)
        if quantizer.kind is TensorKind.ACTIVATION
    }
    wanted = [f"{name}/codes" for name in quantizers]
    # The very kernels of the engine: codes may leave the graph without a fusion being lost.
    logits, *values = run_ort(graph, {"images": images}, outputs=["logits", *wanted])
    codes = dict(zip(quantizers, values, strict=True))
    parts = {name: Part(quantizer, codes[name]) for name, quantizer in quantizers.items()}
    for name, part in parts.items():
        student.get_submodule(name).forward = part
    with torch.no_grad():
        expected = student(torch.from_numpy(images)).numpy()

    assert len(parts) == 1 + 12 * 8 + 1
    for name, part in parts.items():
        assert part.equal >= 0.999, f"{name}: {part.equal:.5f} of the codes are equal"
        # What is left are ties: sums in another order round to the other side of one half.
        assert part.largest_step <= 1, name
        assert part.farthest_from_tie < 1e-3, name
    # Behind the last codes there is one product.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


class Part:
    """Stands in for a quantizer: compares its codes with the engine's, and hands on those.

    Attributes:
        equal: Share of the codes that are equal.
        largest_step: The largest difference of a code.
        farthest_from_tie: Of the values whose codes differ, the largest distance to the middle
            between two codes, in steps.
    """

    def __init__(self, quantizer: Quantizer, codes: Array) -> None:
        self._quantizer = quantizer
        self._codes = codes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        engine = in_torch_layout(self._codes, tuple(x.shape))
        own = self._quantizer.codes(x).numpy()
        differs = own != engine
        self.equal = 1 - differs.mean()
        self.largest_step = int(np.abs(own.astype(np.int16) - engine)[differs].max(initial=0))
        scale = self._quantizer.scale.item()
        position = x.numpy().astype(np.float64)[differs] / scale
        self.farthest_from_tie = np.abs(position % 1 - 0.5).max(initial=0)
        steps = engine.astype(np.float32) - self._quantizer.grid.offset
        return torch.from_numpy(steps * np.float32(scale))


def in_torch_layout(codes: Array, shape: tuple[int, ...]) -> Array:
    """The engine has pictures in patches, and keys turned for their product."""
    if codes.shape == shape:
        return codes
    if codes.ndim == len(shape):
        turned = codes.swapaxes(-1, -2)
    else:
        batch, channels, height, width = shape
        rows, columns = height // PATCH, width // PATCH
        patches = codes.reshape(batch, rows, columns, channels, PATCH, PATCH)
        turned = patches.transpose(0, 3, 1, 4, 2, 5).reshape(shape)
    assert turned.shape == shape
    return np.ascontiguousarray(turned)


def exported(bits: str, shared_data: Path, folder: Path) -> tuple[nn.Module, ir.Model, Array]:
    """DeiT-T with first ranges, its graph for ``ort-cpu``, and photographs it was not made from."""
    photos = shared_data / "photos"
    request = CalibrationRequest(
        model=MODEL,
        recipe=load_recipe(
            "quick", bits=bits, settings=(*FIRST_RANGES, f"synthesis.folder={photos}")
        ),
        checkpoint=shared_data / "models" / f"{MODEL}.safetensors",
    )
    run = calibrate(request, folder / "run")
    manifest = run.manifest
    student = load_student(run)
    provenance = ExportProvenance(
        version="0",
        run_id="0",
        model=MODEL,
        bits=bits,
        recipe="quick",
        preprocessing=manifest.preprocessing,
    )
    graph = export_model(student, target="ort-cpu", provenance=provenance)
    # Evenly spaced over all of them.
    pictures = open_labelled_images(photos, num_classes=1000, limit=PHOTOS)
    images, _ = next(iter(iterate_batches(pictures, manifest.preprocessing, batch_size=PHOTOS)))
    return student, graph, images
