"""Two real processes, started by torchrun, on the built-in model of digits.

The figures are compared with those of one process, which is another program: no messages, no
shares, no sums of gradients.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from _helpers import failing_process
from safetensors.numpy import load_file

from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.demo.story import demo_model
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = (
    "synthesis.num_images=13",  # shards of 4, 4, 4 and 1
    "synthesis.batch_size=4",
    "synthesis.iterations=4",
    "synthesis.precision=fp32",
    "distillation.epochs=3",
    "distillation.batch_size=6",  # steps of 6, 6 and 1: one process has nothing of the last one
    "distillation.precision=fp32",
    # A rounding is not blown up: SGD's step is in proportion to the gradient (AdamW's first ones
    # are not, and differ where a gradient is next to nothing), and a code of 8 bits is small.
    "quantization.weight_bits=8",
    "quantization.activation_bits=8",
    "distillation.optimizer=sgd",
    "distillation.learning_rate=0.2",
    "distillation.scale_learning_rate=1e-6",
)
BLOCK_BY_BLOCK = (
    "fine_tuning=reconstruct",
    "reconstruction.iterations=4",
    "reconstruction.views=1",
    "reconstruction.batch_size=6",  # steps of 6, 6, 1 and 6 views
    "reconstruction.precision=fp32",
)
COMMAND = ["-m", "mimiq_deploy"]
IMAGES = [f"images/shard-0000{number}.safetensors" for number in range(4)]
BY_BIT = [*IMAGES, "images/preview.png", "model.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As torchrun gives its processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return calibrated_alone(tmp_path_factory.mktemp("runs") / "alone", SETTINGS)


def calibrated_alone(output: Path, settings: tuple[str, ...]) -> RunDirectory:
    description, weights = demo_model()
    request = CalibrationRequest(
        model=description["model"],
        recipe=load_recipe("demo", settings=settings),
        checkpoint=weights,
        model_arguments=description["model_args"],
        preprocessing=description["preprocessing"],
        seed=5,
    )
    return calibrate(request, output)


def arguments(output: Path, *others: str, settings: tuple[str, ...] = SETTINGS) -> list[str]:
    description, weights = demo_model()
    options = [("--set", setting) for setting in settings]
    for option, values in (
        ("--model-arg", description["model_args"]),
        ("--preprocessing", description["preprocessing"]),
    ):
        options += [(option, f"{key}={json.dumps(value)}") for key, value in values.items()]
    flat = [part for option in options for part in option]
    return [
        *("calibrate", description["model"], "--checkpoint", str(weights), "--recipe", "demo"),
        *("--seed", "5", "--output", str(output), *flat, *others),
    ]


def torchrun(program: list[str], *others: str) -> subprocess.CompletedProcess[str]:
    launcher = [*("-m", "torch.distributed.run", "--standalone"), "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, *program, *others],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,  # a job whose process has died must not hang
        check=False,
    )


@pytest.fixture(scope="module")
def said_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunDirectory]:
    output = tmp_path_factory.mktemp("runs") / "two"
    done = torchrun(COMMAND, *arguments(output, "--json"))
    assert done.returncode == 0, done.stderr
    return done.stdout, RunDirectory.open(output)


@pytest.fixture(scope="module")
def two(said_and_run: tuple[str, RunDirectory]) -> RunDirectory:
    return said_and_run[1]


def losses(run: RunDirectory) -> list[dict[str, Any]]:
    return [record for (record,) in run.read_metrics("distillation").values()]


class TestTwoProcesses:
    def test_one_of_them_speaks(self, said_and_run: tuple[str, RunDirectory]) -> None:
        said, run = said_and_run
        assert json.loads(said)["run"] == str(run.root)

    def test_the_run_is_whole(self, two: RunDirectory, alone: RunDirectory) -> None:
        assert two.manifest.files.keys() == alone.manifest.files.keys()
        assert two.damaged_files() == []
        assert two.manifest.stages.keys() == alone.manifest.stages.keys()
        assert two.manifest.environment["processes"] == "2"
        assert alone.manifest.environment["processes"] == "1"

    @pytest.mark.parametrize("name", BY_BIT)
    def test_images_are_those_of_one_process(
        self, two: RunDirectory, alone: RunDirectory, name: str
    ) -> None:
        assert two.path(name).read_bytes() == alone.path(name).read_bytes()

    def test_so_are_the_losses_of_the_synthesis(
        self, two: RunDirectory, alone: RunDirectory
    ) -> None:
        assert two.read_metrics("synthesis") == alone.read_metrics("synthesis")

    def test_losses_of_the_distillation_agree(self, two: RunDirectory, alone: RunDirectory) -> None:
        ours, theirs = losses(two), losses(alone)
        assert [record["epoch"] for record in ours] == [0, 1, 2]
        for mine, expected in zip(ours, theirs, strict=True):
            # Sums in another order differ by 1e-7; a code on an edge of its grid of 8 bits may
            # fall to the other side. Seen were 1e-6.
            assert mine == pytest.approx(expected, rel=1e-4)

    def test_so_do_the_scales_and_weights(self, two: RunDirectory, alone: RunDirectory) -> None:
        mine, expected = (load_file(run.path("quantized.safetensors")) for run in (two, alone))
        assert mine.keys() == expected.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "program",
    [COMMAND, [str(Path(failing_process.__file__)), "cramped"]],
    ids=["plain", "too little memory in one of them"],
)
def test_blocks_are_reconstructed_together(tmp_path: Path, program: list[str]) -> None:
    """One that takes its views in smaller parts makes nobody wait for ever, and no other step."""
    settings = (*SETTINGS, *BLOCK_BY_BLOCK)
    done = torchrun(program, *arguments(tmp_path / "two", settings=settings))
    assert done.returncode == 0, done.stderr
    two = RunDirectory.open(tmp_path / "two")
    alone = calibrated_alone(tmp_path / "alone", settings)
    assert two.manifest.files.keys() == alone.manifest.files.keys()
    ours, theirs = (run.read_metrics("reconstruction") for run in (two, alone))
    assert ours.keys() == theirs.keys()
    for number, (record,) in ours.items():
        # Adam divides by the size of a gradient: where that is next to nothing, the order of a sum
        # decides the direction of the first steps.
        assert record.pop("link") == theirs[number][0].pop("link")
        assert record == pytest.approx(theirs[number][0], rel=0.02), number
    mine, expected = (load_file(run.path("quantized.safetensors")) for run in (two, alone))
    for name, value in mine.items():
        np.testing.assert_allclose(value, expected[name], rtol=0.02, atol=2e-3, err_msg=name)


def test_a_job_whose_second_process_fails_ends_and_resumes_to_the_same_files(
    two: RunDirectory, tmp_path: Path
) -> None:
    script = str(Path(failing_process.__file__))
    output = tmp_path / "run"
    refused = torchrun([script, "refuses"], *arguments(output))
    assert refused.returncode != 0
    said = re.findall(r"^Error: .*$", refused.stderr, flags=re.MULTILINE)
    assert said == [line for line in said if failing_process.REASON in line]
    assert len(said) == 1, refused.stderr
    interrupted = RunDirectory.open(output)
    assert [name for name in IMAGES if name in interrupted.manifest.files] == IMAGES[:2]
    first = interrupted.path(IMAGES[0]).stat().st_mtime_ns

    killed = torchrun([script, "dies"], *arguments(output, "--resume"))
    assert killed.returncode != 0
    interrupted = RunDirectory.open(output)
    assert interrupted.path(IMAGES[0]).stat().st_mtime_ns == first, "not made again"
    assert interrupted.manifest.stages["distillation"].state == "running"
    assert interrupted.read_metrics("distillation").keys() == {0}

    resumed = torchrun(COMMAND, *arguments(output, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    run = RunDirectory.open(output)
    for name in two.manifest.files:
        assert run.path(name).read_bytes() == two.path(name).read_bytes(), name
    assert run.manifest.files.keys() == two.manifest.files.keys()
    assert not (output / "checkpoints/distillation.safetensors").exists()
    assert run.manifest.stages["distillation"].details == losses(two)[-1]


def test_what_processes_cannot_share_is_refused_once(two: RunDirectory) -> None:
    done = torchrun(COMMAND, "inspect", str(two.root))
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("Error: inspect is the work of one process") == 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(tmp_path: Path) -> None:
    done = torchrun(COMMAND, *arguments(tmp_path / "run", "--device", "cuda"))
    assert done.returncode == 0, done.stderr
    assert len(losses(RunDirectory.open(tmp_path / "run"))) == 3
