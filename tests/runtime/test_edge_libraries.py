"""The runners of bundles where their libraries are missing or broken: one sentence each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from mimiq_runtime.edge.bundle import Bundle
from mimiq_runtime.edge.engine import load_model
from mimiq_runtime.errors import EngineError
from mimiq_runtime.input_form import InputForm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("engine", "library"),
    [
        *(("ort-cpu", "onnxruntime"), ("ort-trt", "tensorrt")),
        *(("openvino", "openvino"), ("trt", "tensorrt")),
    ],
)
@pytest.mark.parametrize(
    "source",
    ["import lib_that_is_not_there", "raise OSError('lib_that_is_not_there:\\n no such file')"],
    ids=["missing", "broken"],
)
def test_a_library_that_cannot_be_imported(
    engine: str, library: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text(source)
    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    bundle = Bundle(
        engine=engine,
        model=tmp_path / "model.onnx",
        takes=InputForm.NORMALISED,
        preprocessing=None,
        labels=None,
        version_compatible=False,
    )
    with (
        pytest.raises(EngineError, match=r"lib_that_is_not_there.*pip install -r requirements"),
        load_model(bundle),
    ):
        pass
