"""Model repositories for Triton, parsed with the messages that NVIDIA publishes."""

from __future__ import annotations

import importlib.util
import json
import tarfile
import warnings
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from _helpers.native_wheels import unpacked_wheel
from _helpers.plans import add_plan
from _helpers.runs import LABELS, make_run, write_classifier
from click.testing import CliRunner, Result
from google.protobuf import text_format

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

# A wheel of 0.1 MB whose one module is wanted. It is not installed: tritonclient asks for older
# versions of protobuf and ml_dtypes than the rest of the environment has.
CLIENT = "tritonclient==2.73.0"
NAME = "tiny_colours-w4a8"


@pytest.fixture(scope="module")
def messages(request: pytest.FixtureRequest) -> Any:
    """``model_config_pb2`` of NVIDIA's client."""
    wheel = unpacked_wheel(CLIENT, request.config.cache.mkdir("nvidia-wheels"))
    path = wheel / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Made by protobuf 6, read by 7, which protobuf allows and remarks.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path / "run")
    for target in ("ort-cuda", "openvino", "trt"):
        write_classifier(run.path(f"export/{target}/model.onnx"))
        run.record_files(f"export/{target}/model.onnx")
    add_plan(run, max_batch=16, opt_batch=4)
    return run


def bundle(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments), "--triton"])


def parsed(messages: Any, repository: Path, name: str = NAME) -> Any:
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, messages.ModelConfig())


@pytest.mark.parametrize(
    ("engine", "backend", "platform", "file", "kind", "largest"),
    [
        ("ort-cpu", "onnxruntime", "onnxruntime_onnx", "model.onnx", "KIND_CPU", 32),
        ("ort-cuda", "onnxruntime", "onnxruntime_onnx", "model.onnx", "KIND_GPU", 32),
        ("ort-trt", "onnxruntime", "onnxruntime_onnx", "model.onnx", "KIND_GPU", 32),
        ("openvino", "openvino", "", "model.onnx", "KIND_CPU", 32),
        ("trt", "tensorrt", "tensorrt_plan", "model.plan", "KIND_GPU", 16),
    ],
)
def test_a_model_of_every_engine(
    messages: Any,
    engine: str,
    backend: str,
    platform: str,
    file: str,
    kind: str,
    largest: int,
    run: RunDirectory,
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repository"
    result = bundle(run.root, "--engine", engine, "-o", repository)
    assert result.exit_code == 0, result.output
    config = parsed(messages, repository)
    assert (config.name, config.backend, config.platform) == (NAME, backend, platform)
    assert (config.default_model_filename, config.max_batch_size) == (file, largest)
    (group,) = config.instance_group
    assert (group.count, messages.ModelInstanceGroup.Kind.Name(group.kind)) == (1, kind)
    assert config.HasField("dynamic_batching")
    assert list(config.dynamic_batching.preferred_batch_size) == ([4] if engine == "trt" else [])
    (image,), (logits,) = config.input, config.output
    assert image.data_type == messages.TYPE_FP32
    assert image.format == messages.ModelInput.FORMAT_NCHW
    assert (list(image.dims), list(logits.dims)) == ([3, 8, 8], [3])
    assert logits.data_type == messages.TYPE_FP32
    folder = repository / NAME
    assert (folder / logits.label_filename).read_text().split() == LABELS
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {"config.pbtxt", "labels.txt", f"1/{file}"}
    if file == "model.onnx":
        session = onnxruntime.InferenceSession(folder / "1" / file)
        assert [value.name for value in session.get_inputs()] == [image.name]
        assert [value.name for value in session.get_outputs()] == [logits.name]


def test_providers_are_set_as_our_sessions_set_them(
    messages: Any, run: RunDirectory, tmp_path: Path
) -> None:
    found = {}
    for engine in ("ort-cpu", "ort-cuda", "ort-trt"):
        assert bundle(run.root, "--engine", engine, "-o", tmp_path / engine).exit_code == 0
        optimization = parsed(messages, tmp_path / engine).optimization
        accelerators = optimization.execution_accelerators.gpu_execution_accelerator
        options = {one.name: dict(one.parameters) for one in accelerators}
        found[engine] = (optimization.graph.level, options)
    # 2: ONNX Runtime rewrites nothing before TensorRT sees it.
    assert found == {
        "ort-cpu": (0, {}),
        "ort-cuda": (0, {"cuda": {"use_tf32": "0"}}),
        "ort-trt": (2, {"tensorrt": {}, "cuda": {"use_tf32": "0"}}),
    }


def test_a_model_that_takes_pixels(messages: Any, run: RunDirectory, tmp_path: Path) -> None:
    run.write_json("export/ort-cpu/export.json", {"target": "ort-cpu", "input": "pixels"})
    assert bundle(run.root, "-o", tmp_path / "repository").exit_code == 0
    (image,) = parsed(messages, tmp_path / "repository").input
    assert (image.name, image.data_type) == ("pixels", messages.TYPE_UINT8)
    assert (image.format, list(image.dims)) == (messages.ModelInput.FORMAT_NHWC, [8, 8, 3])


def test_without_labels_and_without_batches(messages: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "nameless", labels=None)
    result = bundle(run.root, "-o", tmp_path / "repository", "--max-batch", "1", "--name", "a.b")
    assert result.exit_code == 0, result.output
    config = parsed(messages, tmp_path / "repository", "a.b")
    assert config.output[0].label_filename == ""
    assert not config.HasField("dynamic_batching")
    assert config.max_batch_size == 1


def test_a_repository_takes_several_models(
    messages: Any, run: RunDirectory, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for name in ("one", "two"):
        assert bundle(run.root, "-o", repository, "--name", name).exit_code == 0
    refused = bundle(run.root, "-o", repository, "--name", "two")
    assert refused.exit_code == 2
    assert "two exists already" in refused.output
    again = bundle(run.root, "-o", repository, "--name", "two", "--force", "--max-batch", "4")
    assert again.exit_code == 0, again.output
    assert parsed(messages, repository, "one").max_batch_size == 32
    assert parsed(messages, repository, "two").max_batch_size == 4
    assert {path.name for path in repository.iterdir()} == {"one", "two"}


def test_an_archive(run: RunDirectory, tmp_path: Path) -> None:
    result = bundle(run.root, "-o", tmp_path / "repository.tar.gz", "--json")
    assert result.exit_code == 0, result.output
    with tarfile.open(tmp_path / "repository.tar.gz") as archive:
        names = archive.getnames()
    files = json.loads(result.stdout)["files"]
    assert names == [f"repository/{name}" for name in sorted(files)]
    assert f"{NAME}/1/model.onnx" in files


@pytest.mark.parametrize("name", ["../out", "a b", 'quoted"', "-x"])
def test_names_that_are_none_are_refused(name: str, run: RunDirectory, tmp_path: Path) -> None:
    result = bundle(run.root, "-o", tmp_path / "repository", f"--name={name}")
    assert result.exit_code == 2
    assert "Expected a model name" in result.output


def test_the_messages_refuse_what_is_wrong(messages: Any) -> None:
    """Else the tests above would say nothing."""
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sizes: 1", messages.ModelConfig())
    with pytest.raises(text_format.ParseError):
        text_format.Parse("instance_group [ { kind: KIND_TPU } ]", messages.ModelConfig())
