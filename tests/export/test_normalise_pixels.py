from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import copy_of, model_of, run_ort, run_reference
from _helpers.tiny_students import INPUT_SIZE, Exported, tiny_student

from mimiq_export.export_run import export_model, write_onnx
from mimiq_export.options import ExportOptions
from mimiq_export.passes.normalise_pixels import NormalisePixelsPass
from mimiq_runtime.errors import InvalidInputError, OnnxModelError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.manifest import Preprocessing
from mimiq_runtime.preprocessing import normalise
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_export.provenance import ExportProvenance

COLOUR = Preprocessing(
    input_size=(3, 16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
GRAY = Preprocessing(input_size=(1, 16, 32), mean=(0.1307,), std=(0.3081,))


def images_only(preprocessing: Preprocessing, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """A model that answers with its input, negated."""
    shape = ["batch", *preprocessing.input_size]
    x, y = ir.val("images", dtype, shape), ir.val("y", dtype, shape)
    return model_of([ir.node("Neg", [x], outputs=[y])], [x], [y])


def pixels(preprocessing: Preprocessing, batch: int = 2) -> np.ndarray:
    """All of 0..255 in each channel, in another order in each (N, H, W, C)."""
    channels, height, width = preprocessing.input_size
    count = batch * height * width
    rng = np.random.default_rng(4)
    flat = [rng.permutation(np.arange(count) % 256) for _ in range(channels)]
    return np.stack(flat, axis=1).astype(np.uint8).reshape(batch, height, width, channels)


@pytest.mark.parametrize("preprocessing", [COLOUR, GRAY], ids=["colour", "gray"])
def test_every_pixel_value_has_the_bits_of_the_outside_path(preprocessing: Preprocessing) -> None:
    model = images_only(preprocessing)
    assert NormalisePixelsPass(preprocessing)(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    given = pixels(preprocessing)
    expected = -normalise(given.transpose(0, 3, 1, 2), preprocessing)
    for run in (run_ort, run_reference):
        np.testing.assert_array_equal(run(model, {"pixels": given})[0], expected)
    single = np.float32
    by_hand = (single(given[1, 2, 3, 0]) / single(255) - single(preprocessing.mean[0])) / single(
        preprocessing.std[0]
    )
    assert expected[1, 0, 2, 3] == -by_hand


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("name", ["exported_w4a4", "exported_teacher"], ids=["w4a4", "fp32"])
def test_logits_are_those_of_the_outside_path(
    name: str,
    engine: str,
    request: pytest.FixtureRequest,
    provenance: ExportProvenance,
    tmp_path: Path,
) -> None:
    """Through the sessions that a device uses; bit for bit in ONNX Runtime."""
    outside = request.getfixturevalue(name).graph
    inside = copy_of(outside)
    NormalisePixelsPass(provenance.preprocessing)(inside)
    given = pixels(provenance.preprocessing, batch=5)
    inputs = {
        InputForm.NORMALISED: normalise(given.transpose(0, 3, 1, 2), provenance.preprocessing),
        InputForm.PIXELS: given,
    }
    logits = []
    for graph, form in zip((outside, inside), inputs, strict=True):
        path = tmp_path / f"{form}.onnx"
        assert write_onnx(graph, path).input is form
        with open_session(engine, path) as session:
            assert session.info.takes is form
            logits.append(session.run(inputs[form]))
    # OpenVINO rounds float32 normalisation in its own way: single precision, and no more.
    tolerance = 0 if engine == "ort-cpu" else 1e-5
    np.testing.assert_allclose(*logits, rtol=0, atol=tolerance)
    assert len(np.unique(logits[0], axis=0)) == 5


def test_the_options_of_an_export_go_together(
    exported_w4a4: Exported, provenance: ExportProvenance
) -> None:
    graph = export_model(
        tiny_student(4, 4),
        target="ort-cpu",
        provenance=provenance,
        options=ExportOptions(packed_int4=True, with_preprocessing=True),
    )
    proto = ir.to_proto(graph)
    assert proto.opset_import[0].version == 21
    given = pixels(provenance.preprocessing)
    expected = run_ort(
        exported_w4a4.graph,
        {"images": normalise(given.transpose(0, 3, 1, 2), provenance.preprocessing)},
    )
    np.testing.assert_array_equal(run_ort(graph, {"pixels": given})[0], expected[0])
    onnx.checker.check_model(proto, full_check=True)
    (value,) = proto.graph.input
    shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    assert (value.name, value.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert shape == ["batch", *INPUT_SIZE[1:], INPUT_SIZE[0]]
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["mimiq_deploy.input"] == "pixels"
    assert facts["mimiq_deploy.bits"] == "w4a4"


def test_tensorrt_gets_no_pixels(provenance: ExportProvenance) -> None:
    options = ExportOptions(with_preprocessing=True)
    with pytest.raises(InvalidInputError, match=r"target trt, because .* --with-preprocessing"):
        export_model(tiny_student(4, 4), target="trt", provenance=provenance, options=options)


def test_without_the_option_the_interface_is_what_it_was(exported_w4a4: Exported) -> None:
    assert [value.name for value in exported_w4a4.graph.graph.inputs] == ["images"]
    assert "mimiq_deploy.input" not in exported_w4a4.graph.metadata_props


def test_a_model_in_half_precision_gets_what_it_takes() -> None:
    model = images_only(COLOUR, ir.DataType.FLOAT16)
    NormalisePixelsPass(COLOUR)(model)
    given = pixels(COLOUR)
    expected = -normalise(given.transpose(0, 3, 1, 2), COLOUR).astype(np.float16)
    np.testing.assert_array_equal(run_reference(model, {"pixels": given})[0], expected)


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(OnnxModelError, match=r"\(batch, 1, 16, 32\)"):
        NormalisePixelsPass(GRAY)(images_only(COLOUR))


def test_a_model_that_takes_pixels_already_is_refused() -> None:
    model = images_only(GRAY)
    NormalisePixelsPass(GRAY)(model)
    with pytest.raises(OnnxModelError, match="one floating-point input"):
        NormalisePixelsPass(GRAY)(model)
