"""ONNX files that reach for other files, or are not what they say; in a run, and on their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from _helpers.hostile import refused
from _helpers.runs import ONNX_PATH, SIZE, make_run, write_classifier
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.onnx_external_data import ExternalData, check_external_data, external_data_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = np.arange(9, dtype=np.float32)


def classifier(folder: Path) -> onnx.ModelProto:
    write_classifier(folder / "whole.onnx")
    model = onnx.load(folder / "whole.onnx")
    (folder / "whole.onnx").unlink()
    return model


def with_reference(folder: Path, location: str | list[str], **others: Any) -> bytes:
    """The classifier, one weight of which lies in another file."""
    model = classifier(folder)
    tensor = next(each for each in model.graph.initializer if each.name == "identity")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **others}.items():
        for text in value if isinstance(value, list) else [value]:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(text)
    return model.SerializeToString()


def in_an_attribute(folder: Path, location: str) -> bytes:
    model = classifier(folder)
    constant = numpy_helper.from_array(np.eye(3, dtype=np.float32), "hidden")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    entry = constant.external_data.add()
    entry.key, entry.value = "location", location
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=constant))
    return model.SerializeToString()


def edited(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> bytes:
    model = classifier(folder)
    edit(model)
    return model.SerializeToString()


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["y"], ["x"]))
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    model.graph.node[-3].input[0] = "y"


def weight_shape(dims: list[int]) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "identity")
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return edit


def weight_type(kind: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.name == "identity").data_type = kind

    return edit


def link(folder: Path, outside: Path) -> bytes:
    (folder / "weights.data").symlink_to(outside / "secret")
    return with_reference(folder, "weights.data")


def link_of_a_folder(folder: Path, outside: Path) -> bytes:
    (folder / "sub").symlink_to(outside)
    return with_reference(folder, "sub/secret")


def fifo(folder: Path, outside: Path) -> bytes:
    os.mkfifo(folder / "weights.data")
    return with_reference(folder, "weights.data")


def short(folder: Path, outside: Path) -> bytes:
    (folder / "weights.data").write_bytes(bytes(8))
    return with_reference(folder, "weights.data", offset=0, length=36)


def ort_marker(folder: Path, outside: Path) -> bytes:
    """ONNX Runtime's and OpenVINO's word for an address in memory, with such a file, too."""
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(bytes(64))
    return with_reference(folder, "*/_ORT_MEM_ADDR_/*", offset=0, length=36)


def ring(folder: Path, outside: Path) -> bytes:
    (folder / "weights.data").symlink_to("weights.data")
    return with_reference(folder, "weights.data")


def in_a_folder(folder: Path, outside: Path) -> bytes:
    (folder / "sub").mkdir()
    (folder / "sub" / "w").write_bytes(bytes(36))
    return with_reference(folder, "sub/w", offset=0, length=36)


REACHING: dict[str, Callable[[Path, Path], bytes]] = {
    "climbs out": lambda folder, outside: with_reference(folder, "../../../outside/secret"),
    "climbs out by way of a folder": lambda f, outside: with_reference(f, "a/../../outside/secret"),
    "absolute": lambda folder, outside: with_reference(folder, str(outside / "secret")),
    "of another system": lambda folder, outside: with_reference(folder, "..\\secret"),
    "without a name": lambda folder, outside: with_reference(folder, ""),
    "in a folder": in_a_folder,
    "an address in memory": ort_marker,
    "a drive": lambda folder, outside: with_reference(folder, "C:w"),
    "a name with a line break": lambda folder, outside: with_reference(folder, "w\nError: x"),
    "a ring of links": ring,
    "a link": link,
    "a link of a folder": link_of_a_folder,
    "a pipe": fifo,
    "not there": lambda folder, outside: with_reference(folder, "weights.data"),
    "the folder": lambda folder, outside: with_reference(folder, "."),
    "too short": short,
    "negative offset": lambda folder, outside: with_reference(folder, "w", offset=-4, length=36),
    "offset beyond 64 bits": lambda folder, outside: with_reference(folder, "w", offset=2**64),
    "named twice": lambda folder, outside: with_reference(folder, ["w", str(outside)]),
    "in an attribute": lambda folder, outside: in_an_attribute(folder, "../secret"),
    "a name of 300 letters": lambda folder, outside: with_reference(folder, "a" * 300),
    "a name of 5000 letters": lambda folder, outside: with_reference(folder, "a" * 5000),
}
BROKEN: dict[str, Callable[[Path, Path], bytes]] = {
    "empty": lambda folder, outside: b"",
    "text": lambda folder, outside: b"model\n" * 50,
    "noise": lambda folder, outside: np.random.default_rng(0).bytes(3000),
    "cut": lambda folder, outside: classifier(folder).SerializeToString()[:300],
    "a length of 2^63": lambda folder, outside: b"\x3a" + b"\xff" * 8 + b"\x7f" + bytes(50),
    "an integer without an end": lambda folder, outside: b"\x08" + b"\xff" * 40,
    "nested deeply": lambda folder, outside: nested(4000),
}
UNUSABLE: dict[str, Callable[[Path, Path], bytes]] = {
    "cycle": lambda folder, outside: edited(folder, cycle),
    "dimensions that overflow": lambda folder, outside: edited(
        folder, weight_shape([2**40, 2**40])
    ),
    "a dimension below zero": lambda folder, outside: edited(folder, weight_shape([-3, -3])),
    "a weight without values": lambda folder, outside: edited(folder, weight_shape([10**6, 10**6])),
    "a weight of another type": lambda folder, outside: edited(
        folder, weight_type(TensorProto.INT64)
    ),
    "a weight of no type": lambda folder, outside: edited(folder, weight_type(999)),
    "opset of the future": lambda folder, outside: edited(
        folder, lambda model: setattr(model.opset_import[0], "version", 10_000)
    ),
    "format of the future": lambda folder, outside: edited(
        folder, lambda model: setattr(model, "ir_version", 10_000)
    ),
    "operator that nobody knows": lambda folder, outside: edited(
        folder, lambda model: setattr(model.graph.node[0], "op_type", "Shell")
    ),
    "an input of another type": lambda folder, outside: edited(
        folder,
        lambda model: setattr(
            model.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING
        ),
    ),
    "no graph": lambda folder, outside: edited(folder, lambda model: model.ClearField("graph")),
}


def nested(depth: int) -> bytes:
    """Graphs in attributes of nodes in graphs, by hand: protobuf would not write it."""
    content = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            content = tag + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET.tobytes())
    return folder


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("name", [*REACHING, *BROKEN, *UNUSABLE])
def test_in_a_run(tmp_path: Path, outside: Path, name: str, engine: str) -> None:
    """Its digest is that of run.json: whoever made the one has made the other."""
    if engine == "openvino" and name in UNUSABLE:
        pytest.skip("what OpenVINO makes of a graph is its own business; it reads no other file")
    run = make_run(tmp_path / "run", exported=False)
    relative = ONNX_PATH.replace("ort-cpu", engine)
    folder = run.path(relative).parent
    folder.mkdir(parents=True)
    content = {**REACHING, **BROKEN, **UNUSABLE}[name](folder, outside)
    run.path(relative).write_bytes(content)
    run.record_files(relative)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (SIZE, SIZE)).save(picture)
    sentence = refused(["predict", run.root, picture, "--engine", engine], outside)
    assert "model.onnx" in sentence


@pytest.mark.parametrize("name", [*REACHING, *BROKEN])
def test_lint_and_build(tmp_path: Path, outside: Path, name: str) -> None:
    path = tmp_path / "onnx" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes({**REACHING, **BROKEN}[name](path.parent, outside))
    for command in (["inspect", path, "--lint", "ort-cpu"], ["build", path]):
        assert str(path.parent) in refused(command, outside)


@pytest.mark.parametrize("name", ["empty", "text", "noise", "cut", "no graph"])
def test_inspect(tmp_path: Path, outside: Path, name: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes({**BROKEN, **UNUSABLE}[name](tmp_path, outside))
    refused(["inspect", path], outside)


def test_weights_beside_the_file_are_taken(tmp_path: Path) -> None:
    np.eye(3, dtype=np.float32).tofile(tmp_path / "w.data")
    path = tmp_path / "model.onnx"
    path.write_bytes(with_reference(tmp_path, "w.data", offset=0, length=36))
    assert external_data_of(path) == [ExternalData("w.data", 0, 36)]
    check_external_data(path)


@pytest.mark.parametrize(
    "where",
    [
        *("initializer", "sparse", "sparse indices", "attribute", "attribute's list"),
        *("attribute's sparse", "subgraph", "subgraph's initializer", "function", "training"),
    ],
)
def test_no_tensor_is_overlooked(tmp_path: Path, where: str) -> None:
    """Against protobuf's own reader: wherever a tensor may stand in a model."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../x"
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    model = classifier(tmp_path)
    match where:
        case "initializer":
            model.graph.initializer.append(tensor)
        case "sparse":
            sparse = model.graph.sparse_initializer.add()
            sparse.values.CopyFrom(tensor)
        case "sparse indices":
            sparse = model.graph.sparse_initializer.add()
            sparse.indices.CopyFrom(tensor)
        case "attribute":
            model.graph.node.append(constant)
        case "attribute's list":
            model.graph.node.append(helper.make_node("Own", [], ["c"], values=[tensor]))
        case "attribute's sparse":
            sparse = onnx.SparseTensorProto(values=tensor)
            model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
        case "subgraph's initializer":
            inner = helper.make_graph([], "inner", [], [], [tensor])
            model.graph.node.append(helper.make_node("Loop", ["c"], ["d"], body=inner))
        case "training":
            model.training_info.add().algorithm.initializer.append(tensor)
        case "subgraph":
            inner = helper.make_graph([constant], "inner", [], [])
            model.graph.node.append(
                helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
            )
        case _:
            opsets = [helper.make_opsetid("", 20)]
            model.functions.append(helper.make_function("d", "f", [], [], [constant], opsets))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert [data.location for data in external_data_of(path)] == ["../x"]
    with pytest.raises(OnnxModelError, match="only files beside"):
        check_external_data(path)
