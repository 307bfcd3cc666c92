"""What every session on a CPU promises, on tiny ONNX models; the reference is numpy.

What only one of the engines does is in ``test_ort_session.py`` and ``test_openvino_session.py``.
"""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.tiny_classifiers import WEIGHT, images, save_model
from onnx import TensorProto

from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

# The library that each engine imports, and the extra that installs it.
ENGINES = {"ort-cpu": ("onnxruntime", "ort"), "openvino": ("openvino", "openvino")}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(ENGINES[name][0])
    return name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("n", [1, 7])
def test_logits_equal_numpy(engine: str, model: Path, n: int) -> None:
    with open_session(engine, model) as session:
        logits = session.run(images(n))
    assert (logits.shape, logits.dtype) == ((n, 5), np.float32)
    expected = images(n).mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_images_need_not_be_contiguous_and_results_stay(engine: str, model: Path) -> None:
    turned = images(2).transpose(0, 1, 3, 2)[:, ::-1]
    with open_session(engine, model) as session:
        first = session.run(turned)
        session.run(images(2) * 100)
    expected = turned.mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)


def test_info_says_what_runs(engine: str, model: Path) -> None:
    library = ENGINES[engine][0]
    with open_session(engine, model, threads=1) as session:
        info = session.info
    assert (info.engine, info.model, info.threads) == (engine, str(model), 1)
    assert info.libraries == {library: sys.modules[library].__version__}
    assert info.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert info.input_shape == (None, 3, 4, 4)


def test_threads_default_to_the_cores(engine: str, model: Path) -> None:
    with open_session(engine, model) as session:
        assert session.info.threads == usable_cores()


def test_missing_library_names_the_extra(
    engine: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, extra = ENGINES[engine]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"{library} is needed.*-deploy\[{extra}\]"):
        open_session(engine, model)


def test_missing_file_and_folder(engine: str, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(OnnxModelError, match="Expected an ONNX file"):
            open_session(engine, path)


@pytest.mark.parametrize("fault", ["empty", "noise", "truncated", "unknown operator"])
def test_broken_models_are_one_sentence_and_no_noise(
    engine: str, model: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = model.read_bytes()
    if fault == "unknown operator":
        save_model(model, operator="NoSuchOperator")
    else:
        damaged = {"empty": b"", "noise": b"\x99hello" * 50, "truncated": content[:-40]}
        model.write_bytes(damaged[fault])
    with pytest.raises(OnnxModelError, match=r"is not an? (model that|ONNX)") as caught:
        open_session(engine, model)
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)
    assert str(model) in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changes",
    [{"shape": ("N", 3, 16)}, {"dtype": TensorProto.UINT8}, {"inputs": 2}, {"outputs": 2}],
    ids=["rank", "type", "inputs", "outputs"],
)
def test_models_that_are_no_image_classifier(
    engine: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = save_model(tmp_path / "model.onnx", **changes)
    with pytest.raises(OnnxModelError, match=r"Expected one input (tensor\(float\)|f32).*image0"):
        open_session(engine, path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (images(2, 3, 5, 4), r"shape \(any, 3, 4, 4\).*got float32 of shape \(2, 3, 5, 4\)"),
        (images(2, 1, 4, 4), r"got float32 of shape \(2, 1, 4, 4\)"),
        (images(2).astype(np.float64), "got float64"),
        (images(2)[0], r"got float32 of shape \(3, 4, 4\)"),
        (images(2)[:0], r"at least one, got float32 of shape \(0, 3, 4, 4\)"),
    ],
    ids=["size", "channels", "type", "rank", "none"],
)
def test_images_that_do_not_fit(
    engine: str, model: Path, given: np.ndarray[Any, Any], expected: str
) -> None:
    with open_session(engine, model) as session, pytest.raises(InvalidInputError, match=expected):
        session.run(given)


def test_a_fixed_batch_size_is_kept(engine: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", shape=(2, 3, 4, 4))
    with open_session(engine, path) as session:
        assert session.info.input_shape == (2, 3, 4, 4)
        assert session.run(images(2)).shape == (2, 5)
        with pytest.raises(InvalidInputError, match=r"shape \(2, 3, 4, 4\)"):
            session.run(images(3))


@pytest.mark.parametrize(
    ("shape", "axes", "got"),
    [((3, 4, 4), (0, 2, 3), r"\(5,\)"), ((4, 4, 3), (0, 1), r"\(4, 5\)")],
    ids=["rank", "rows"],
)
def test_logits_of_another_shape_are_an_engine_error(
    engine: str, tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...], got: str
) -> None:
    path = save_model(tmp_path / "model.onnx", shape=("N", *shape), axes=axes)
    with (
        open_session(engine, path) as session,
        pytest.raises(EngineError, match=rf"logits of shape \(2, classes\).*got {got}"),
    ):
        session.run(images(2, *shape))


def test_a_closed_session_says_so(engine: str, model: Path) -> None:
    with open_session(engine, model) as session:
        pass
    with pytest.raises(EngineError, match="closed"):
        session.run(images(1))
    assert session.info.engine == engine
