"""Nothing asks the network: a process in which every socket is an error does the whole work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from _helpers.tiny_students import tiny_vit
from PIL import Image
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
RECIPE = {
    "name": "offline",
    "quantization": {"weight_bits": 8, "activation_bits": 8},
    "synthesis": {"num_images": 2, "held_out": 1, "batch_size": 3, "iterations": 1},
    "observation": {"num_images": 2},
    "distillation": {"epochs": 1, "batch_size": 2},
}

OFFLINE = """
import json, sys

asked = []

def refuse(event, arguments):
    # Every way of Python to the network passes here, whatever library takes it.
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        asked.append(f"{event} {arguments}")
        raise OSError("the network is blocked")

sys.addaudithook(refuse)

from click.testing import CliRunner
from mimiq_deploy.cli import cli

told = []
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(cli, command)
    told.append([result.exit_code, result.output[:20_000], repr(result.exception)])
print(json.dumps({"told": told, "asked": asked}))
"""


def offline(folder: Path, *commands: list[object]) -> tuple[list[tuple[int, str, str]], list[str]]:
    """Exit code, output and exception of each command, and what asked the network."""
    empty = folder / "cache"
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps([[*map(str, words)] for words in commands])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(empty),
            "HF_ENDPOINT": "https://huggingface.co",
            "TORCH_HOME": str(empty),
        },
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return [tuple(each) for each in answer["told"]], answer["asked"]


@pytest.fixture
def calibrate(tmp_path: Path) -> list[object]:
    save_file(tiny_vit(**ARCHITECTURE).state_dict(), tmp_path / "tiny.safetensors")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    sizes = [("--model-arg", f"{key}={value}") for key, value in ARCHITECTURE.items()]
    return [
        *("calibrate", "vit_tiny_patch16_224", "--recipe", tmp_path / "recipe.yaml"),
        *("-o", tmp_path / "run", *(word for pair in sizes for word in pair)),
    ]


def test_all_commands_and_no_network(tmp_path: Path, calibrate: list[object]) -> None:
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(picture)
    told, asked = offline(
        tmp_path,
        [*calibrate, "--checkpoint", tmp_path / "tiny.safetensors"],
        ["export", run],
        ["validate", run],
        ["bench", run, "--rounds", "3", "--batch-size", "1"],
        ["report", run],
        ["predict", run, picture],
        ["bundle", run, "--engine", "ort-cpu", "-o", tmp_path / "bundle.tar.gz"],
        ["inspect", run, "--verify"],
        ["inspect", run / "export/ort-cpu/model.onnx", "--lint", "ort-cpu"],
        ["doctor"],
    )
    assert [code for code, _, _ in told] == [0] * 10, told
    assert asked == []
    assert not any("or else from" in output for _, output, _ in told)


def test_weights_of_timm_are_asked_for_and_refused_in_a_sentence(
    tmp_path: Path, calibrate: list[object]
) -> None:
    """Without --checkpoint timm may ask its hub: the only way to the network."""
    ((code, output, _),), asked = offline(tmp_path, calibrate)
    assert code == 2
    lines = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, output
    assert "timm could not load its pretrained weights of vit_tiny_patch16_224" in lines[0]
    assert "give the weights with --checkpoint" in lines[0]
    assert asked, "the test would see it"
    # What is asked is told before, once, with the host that the sockets saw.
    note, _, rest = output.partition("\n")
    assert note == (
        "From timm's cache, or else from huggingface.co "
        "(timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k): pretrained weights of "
        "vit_tiny_patch16_224; --checkpoint FILE avoids this."
    )
    assert "or else from" not in rest
    assert any("'huggingface.co'" in each for each in asked), asked
    assert not (tmp_path / "run").exists()
