"""What only OpenVINO does; the reference is ONNX Runtime. See also ``test_cpu_sessions.py``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import openvino
import pytest
from _helpers.runs import write_classifier
from _helpers.tiny_classifiers import save_model

from mimiq_runtime.errors import EngineError, InvalidInputError
from mimiq_runtime.session import needs_gpu, open_session, target_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


def test_info_says_what_runs(model: Path) -> None:
    with open_session("openvino", model, threads=1) as session:
        info = session.info
    device = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    assert (info.device, info.provider) == (device, "openvino_intel_cpu_plugin")
    assert info.precision == "f32"
    assert info.products == {"f32": 1}


def test_a_quantized_product_runs_in_int8_and_gives_the_same_answer(tmp_path: Path) -> None:
    """One product on dequantized operands, one on floating point; ONNX Runtime is the reference."""
    path = tmp_path / "model.onnx"
    write_classifier(path)
    batch = np.random.default_rng(0).uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    with open_session("openvino", path) as tested, open_session("ort-cpu", path) as reference:
        np.testing.assert_allclose(tested.run(batch), reference.run(batch), rtol=1e-5, atol=1e-6)
        assert tested.info.products == {"f32": 1, "i8": 1}


def test_a_library_that_cannot_be_loaded_is_one_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "openvino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libtbb.so.12: no such file')")
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(EngineError, match=r"cannot be loaded \(libtbb.*--force-reinstall"):
        open_session("openvino", model)


def test_every_engine_has_a_target() -> None:
    assert {engine: target_of(engine) for engine in ("openvino", "ort-trt", "trt", "ort-cuda")} == {
        "openvino": "openvino",
        "ort-trt": "trt",
        "trt": "trt",
        "ort-cuda": "ort-cuda",
    }
    assert needs_gpu("ort-trt")
    assert not needs_gpu("openvino")
    with pytest.raises(InvalidInputError, match="one of the engines"):
        target_of("abacus")
