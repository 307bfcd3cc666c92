"""Run directories that come from somebody else: links, names, digests, versions, deep JSON."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.hostile import refused
from _helpers.runs import ONNX_PATH, SIZE, make_run
from PIL import Image

from mimiq_deploy.recipe_loading import load_recipe
from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.strict_json import LARGEST_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("kept")
    return make_run(tmp_path / "run")


def predict(run: RunDirectory) -> str:
    picture = run.root.parent / "picture.png"
    Image.new("RGB", (SIZE, SIZE)).save(picture)
    return refused(["predict", run.root, picture], run.root.parent / "outside")


def manifest(run: RunDirectory) -> dict[str, Any]:
    return dict(json.loads((run.root / "run.json").read_text()))


def changed(*path: str, to: Any) -> Callable[[dict[str, Any]], str]:
    def edit(content: dict[str, Any]) -> str:
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return json.dumps(content)

    return edit


def twice(content: dict[str, Any]) -> str:
    return json.dumps(content)[:-1] + ', "schema_version": 1}'


RECORD = {"sha256": "0" * 64, "bytes": 1}
MANIFESTS: dict[str, Callable[[dict[str, Any]], str | bytes]] = {
    "empty": lambda content: "",
    "text": lambda content: "run",
    "not UTF-8": lambda content: b'{"a": "\xff"}',
    "a list": lambda content: "[1]",
    "nested deeply": lambda content: "[" * 200_000,
    "nested deeply in the recipe": lambda content: json.dumps(content).replace(
        '"quick"', '{"a":' * 100_000 + "1" + "}" * 100_000
    ),
    "a key twice": twice,
    "a key twice inside": lambda content: json.dumps(content).replace(
        '"seed"', '"seed": 1, "seed"'
    ),
    "NaN": lambda content: json.dumps(content).replace('"seed": 7', '"seed": NaN'),
    "a number of 10000 digits": lambda content: json.dumps(content).replace(
        '"seed": 7', '"seed": ' + "9" * 10_000
    ),
    "no version": lambda content: json.dumps({**content, "schema_version": None}),
    "a version of the future": changed("schema_version", to=2),
    "a version that is true": changed("schema_version", to=True),
    "an unknown key": changed("command", to="rm"),
    "UTF-16": lambda content: json.dumps(content).encode("utf-16"),
    "UTF-8 with a mark": lambda content: json.dumps(content).encode("utf-8-sig"),
    "half of a character": changed("model", "name", to="\ud800"),
    "half of a character as a key": changed("environment", to={"\udfff": "1"}),
    "half of a character in what is not looked at": changed("recipe", "x", to=["\udfff"]),
    "a seed that is true": changed("seed", to=True),
    "a seed that is a text": changed("seed", to="7"),
    "a seed below zero": changed("seed", to=-1),
    "a seed beyond 64 bits": changed("seed", to=2**70),
    "an integer of 4000 digits": lambda content: json.dumps(content).replace(
        '"seed": 7', '"seed": ' + "9" * 4000
    ),
    "a size that is true": changed("files", ONNX_PATH, "bytes", to=True),
    "a time that is a text": changed("stages", "calibrate", "seconds", to="12.5"),
    "a crop that is a text": changed("preprocessing", "crop_pct", to="0.9"),
    "a mean that is true": changed("preprocessing", "mean", to=[True, 0, 0]),
    "a mean of 1e30": changed("preprocessing", "mean", to=[1e30, 0, 0]),
    "a mean below any pixel": changed("preprocessing", "mean", to=[0, -1e4, 0]),
    "a standard deviation below zero": changed("preprocessing", "std", to=[1, -1, 1]),
    "a standard deviation of 1e30": changed("preprocessing", "std", to=[1, 1, 1e30]),
    "a standard deviation of 1e-30": changed("preprocessing", "std", to=[1, 1, 1e-30]),
    "labels that are numbers": changed("model", "labels", to=[1, 2, 3]),
    "a name of 300 letters": changed("files", to={"n" * 300: RECORD}),
    "a name that a terminal obeys": changed("files", to={"a\x1b[2J": RECORD}),
    "a name with a zero": changed("files", to={"a\x00": RECORD}),
    "a name that climbs": changed("files", to={"../outside/secret": RECORD}),
    "an absolute name": changed("files", to={"/etc/passwd": RECORD}),
    "a digest that is none": changed("files", to={ONNX_PATH: {"sha256": "x", "bytes": 1}}),
    "a size below zero": changed("files", to={ONNX_PATH: {**RECORD, "bytes": -1}}),
    "another digest": changed("files", ONNX_PATH, "sha256", to="0" * 64),
    "another size": changed("files", ONNX_PATH, "bytes", to=1),
    "a stage of no state": changed("stages", to={"export": {"state": "hacked"}}),
    "an input of a terabyte": changed("preprocessing", "input_size", to=[3, 10**6, 10**6]),
    "an input without pixels": changed("preprocessing", "input_size", to=[3, 0, 8]),
    "a standard deviation of zero": changed("preprocessing", "std", to=[0, 1, 1]),
    "a trillion classes": changed("model", "num_classes", to=10**12),
    "a filter of nobody": changed("preprocessing", "interpolation", to="shell"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_run_json(run: RunDirectory, name: str) -> None:
    content = MANIFESTS[name](manifest(run))
    (run.root / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    predict(run)


REACHING = {
    "checkpoint_path": "../outside/secret",
    "pretrained": True,
    "pretrained_cfg": {"file": "../outside/secret"},
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1/weights"},
    "cache_dir": "../outside",
    "features_only": True,
    "device": "meta",
}


@pytest.mark.parametrize("key", REACHING)
def test_an_argument_that_is_none_of_a_model(run: RunDirectory, key: str) -> None:
    sentence = exported(run, name="vit_tiny_patch16_224", arguments={key: REACHING[key]})
    assert f"with the argument '{key}'" in sentence


@pytest.mark.parametrize("place", ["hf-hub:somebody/model", "hf_hub:somebody/model"])
def test_a_model_on_a_hub(run: RunDirectory, place: str) -> None:
    assert "timm's name of the architecture" in exported(run, name=place)


@pytest.mark.parametrize("place", ["local-dir:../outside", "HF-HUB:somebody/model", "../outside"])
def test_a_model_that_timm_would_look_for(run: RunDirectory, place: str) -> None:
    assert "has no model named" in exported(run, name=place)


def exported(run: RunDirectory, **model: Any) -> str:
    """The sentence of the first command that builds the model of a run."""
    run.write_tensors(run.MODEL, {"head.weight": np.eye(3, dtype=np.float32)})
    content = manifest(run)
    content["model"].update(model)
    content["recipe"] = load_recipe("quick").model_dump(mode="json")
    (run.root / "run.json").write_text(json.dumps(content))
    return refused(["export", run.root], run.root.parent / "outside")


def test_a_run_json_of_many_megabytes(run: RunDirectory) -> None:
    with (run.root / "run.json").open("wb") as file:
        file.truncate(LARGEST_DOCUMENT + 1)
    assert "larger than 64 MiB" in predict(run)


@pytest.mark.parametrize("name", ["run.json", ONNX_PATH, "export", "export/ort-cpu"])
def test_links_that_leave_the_run(run: RunDirectory, name: str) -> None:
    """The target is a copy of what was there: the digest fits, and it is refused all the same."""
    moved = run.root.parent / "outside" / "moved"
    shutil.move(run.root / name, moved)
    (run.root / name).symlink_to(moved)
    assert "leads out of the run" in predict(run)


def test_links_within_the_run_are_followed(run: RunDirectory) -> None:
    path = run.path(ONNX_PATH)
    path.rename(path.with_name("other.onnx"))
    path.symlink_to("other.onnx")
    assert run.existing(ONNX_PATH, made_by="x") == path


@pytest.mark.parametrize("folder", ["export", "engines", "images", "checkpoints"])
def test_nothing_is_written_through_a_link(run: RunDirectory, folder: str) -> None:
    outside = run.root.parent / "outside"
    shutil.rmtree(run.root / folder, ignore_errors=True)
    (run.root / folder).symlink_to(outside)
    with pytest.raises(RunDirectoryError, match="leads out of the run"):
        run.write_tensors(f"{folder}/a", {"x": np.zeros(1)})
    with pytest.raises(RunDirectoryError, match="leads out of the run"):
        run.path(f"{folder}/distillation.safetensors")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_a_pipe_in_place_of_run_json(run: RunDirectory) -> None:
    (run.root / "run.json").unlink()
    os.mkfifo(run.root / "run.json")
    assert "not a regular file" in predict(run)


def test_a_loop_of_links(run: RunDirectory) -> None:
    path = run.path(ONNX_PATH)
    path.unlink()
    path.symlink_to(path)
    predict(run)


TABLES: dict[str, str] = {
    "nested deeply": "[" * 200_000,
    "a key twice": '{"tensors": [], "tensors": []}',
    "no table": '{"tensors": 3}',
    "a scale of zero": "0",
    "a scale below zero": "-1",
    "a scale that is NaN": "NaN",
    "a scale that is infinite": "1e999",
    "a grid of 10^9 codes": "grid",
}


@pytest.mark.parametrize("name", TABLES)
def test_quantization_json(run: RunDirectory, name: str) -> None:
    """With the right digest: whoever changed the table has changed run.json, too."""
    text = TABLES[name]
    path = run.path(run.TABLE)
    if name.startswith("a scale"):
        text = path.read_text().replace('"scale": 0.5', f'"scale": {text}')
    elif name.startswith("a grid"):
        text = path.read_text().replace('"qmax": 127', '"qmax": 1000000000', 1)
    assert text != path.read_text()
    path.write_text(text)
    run.record_files(run.TABLE)
    assert "quantization.json is damaged" in refused(
        ["inspect", run.root], run.root.parent / "outside"
    )
