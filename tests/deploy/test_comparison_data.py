from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from _helpers.runs import SIZE, make_run
from PIL import Image

from mimiq_deploy.comparison_data import DataKind, open_data
from mimiq_runtime.errors import DatasetError, InvalidInputError, RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run", exported=False)


def put(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (index, index, index)).save(path)


def test_photographs_without_labels(run: RunDirectory, tmp_path: Path) -> None:
    put(tmp_path / "pictures", "c.png", "a.png", "b.png")
    data = open_data(run, tmp_path / "pictures", limit=None)
    assert data.labels is None
    assert (data.record.kind, data.record.n, data.record.labelled) == ("photographs", 3, False)
    batches = list(data.batches(2))
    assert [batch.shape for batch in batches] == [(2, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)]
    assert [int(batch.flat[0]) for batch in (*batches[0], batches[1][0])] == [1, 2, 0]
    spread = open_data(run, tmp_path / "pictures", limit=2)
    assert next(spread.batches(9))[:, 0, 0, 0].tolist() == [1, 2]


def test_photographs_with_labels(run: RunDirectory, tmp_path: Path) -> None:
    put(tmp_path / "pictures", "0/a.png", "2/b.png")
    data = open_data(run, tmp_path / "pictures", limit=None)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 2]
    assert data.record.labelled


@pytest.mark.parametrize("names", [(), ("notes.txt",)], ids=["empty", "no-picture"])
def test_a_folder_without_pictures_is_refused(
    run: RunDirectory, tmp_path: Path, names: tuple[str, ...]
) -> None:
    (tmp_path / "pictures").mkdir()
    for name in names:
        (tmp_path / "pictures" / name).write_text("")
    with pytest.raises(DatasetError, match="has no pictures"):
        open_data(run, tmp_path / "pictures", limit=None)


def test_the_runs_own_images_begin_with_those_held_out(run: RunDirectory) -> None:
    shards = [np.full((2, 3, SIZE, SIZE), shard, np.uint8) for shard in range(3)]
    for shard, images in enumerate(shards):
        name = f"images/shard-{shard:05d}.safetensors"
        run.write_tensors(name, {"images": images, "labels": np.zeros(2, np.int64)})
    run.write_tensors("images/dead-leaves.safetensors", {"images": shards[0] + 9})
    data = open_data(run, DataKind.SYNTHETIC, limit=None)
    # Targets of the synthesis are no labels: nobody has looked at these pictures.
    assert data.labels is None
    (pixels,) = data.batches(9)
    assert pixels[:, 0, 0, 0].tolist() == [2, 2, 1, 1, 0, 0]
    assert len(open_data(run, DataKind.SYNTHETIC, limit=3)) == 3


def test_a_run_without_images_is_refused(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="images"):
        open_data(run, DataKind.SYNTHETIC, limit=None)


def test_noise_comes_from_the_runs_seed(run: RunDirectory) -> None:
    data = open_data(run, DataKind.NOISE, limit=4)
    (pixels,) = data.batches(9)
    expected = np.random.default_rng(7).integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8)
    np.testing.assert_array_equal(pixels, expected)
    assert data.record.origin == "seed 7"
    assert len(open_data(run, DataKind.NOISE, limit=None)) == 32


def test_no_images_are_no_comparison(run: RunDirectory) -> None:
    with pytest.raises(InvalidInputError, match="limit of 0"):
        open_data(run, DataKind.NOISE, limit=0)
