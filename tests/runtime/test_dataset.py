from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from mimiq_runtime.dataset import (
    LABELS_FILE,
    iterate_batches,
    iterate_pixels,
    open_labelled_images,
    open_pictures,
)
from mimiq_runtime.errors import DatasetError, InvalidInputError
from mimiq_runtime.manifest import Preprocessing
from mimiq_runtime.preprocessing import normalise, preprocess_files

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSING = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def put(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 0, 255 - index)).save(path)


def put_labels(folder: Path, text: str) -> None:
    (folder / LABELS_FILE).write_text(text, encoding="utf-8")


def test_labels_file_in_the_order_of_its_rows(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "sub/a.png", "ü, c.png")
    put_labels(tmp_path, 'name,label,file\nx,2,b.png\ny,0,sub/a.png\n\nz, 1 ,"ü, c.png"\n')
    images = open_labelled_images(tmp_path, num_classes=3)
    expected = ["b.png", "sub/a.png", "ü, c.png"]
    assert [str(path.relative_to(tmp_path)) for path in images.paths] == expected
    assert images.labels.tolist() == [2, 0, 1]
    assert images.labels.dtype == np.int64
    assert images.class_names is None
    assert len(images) == 3


def test_labels_file_with_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / LABELS_FILE).write_bytes(b"\xef\xbb\xbffile,label\r\na.png,1\r\n")
    assert open_labelled_images(tmp_path, num_classes=2).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"header.*file is there 0 times \(header: nothing\)"),
        ("file,class\na.png,0\n", r"label is there 0 times \(header: file,class\)"),
        ("path,label\na.png,0\n", "file is there 0 times"),
        ("file,label,label\na.png,0,1\n", "label is there 2 times"),
        ("file,label\n", "lists no pictures"),
        ("file,label\na.png,cat\n", r"line 2: expected an integer class index.*got 'cat'"),
        ("file,label\na.png,1.0\n", r"expected an integer.*got '1\.0'"),
        ("file,label\na.png,\n", "expected an integer.*got ''"),
        ("file,label\na.png,0\nb.png,3\n", r"line 3: expected a label in 0\.\.2, got 3"),
        ("file,label\na.png,-1\n", r"expected a label in 0\.\.2, got -1"),
        ("file,label\na.png\n", "line 2: expected 2 values, got 1"),
        ("file,label\na.png,0,7\n", "line 2: expected 2 values, got 3"),
        ("file,label\na.png,0\nx.png,1\ny.png,1\n", r"2 file\(s\) that are not there.*x\.png"),
        ("file,label\n../a.png,0\n", r"inside the folder.*got '\.\./a\.png'"),
        ("file,label\nsub/../../a.png,0\n", "inside the folder"),
        ("file,label\n/etc/passwd,0\n", "inside the folder"),
        ("file,label\n,0\n", "inside the folder.*got ''"),
        ("file,label\na.png,0\n./a.png,1\n", r"1 file\(s\) more than once.*a\.png"),
        ('file,label\n"a.png,0\n', "cannot be read as comma-separated UTF-8"),
    ],
)
def test_faults_of_the_labels_file(tmp_path: Path, text: str, expected: str) -> None:
    put(tmp_path, "a.png", "b.png")
    put_labels(tmp_path, text)
    with pytest.raises(DatasetError, match=expected) as caught:
        open_labelled_images(tmp_path, num_classes=3)
    assert "\n" not in str(caught.value)


def test_labels_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / LABELS_FILE).write_bytes(b"file,label\n\xff\xfe.png,0\n")
    with pytest.raises(DatasetError, match="UTF-8"):
        open_labelled_images(tmp_path, num_classes=3)


def test_class_folders_equal_torchvision(tmp_path: Path) -> None:
    put(tmp_path, "dog/2.png", "dog/10.jpg", "cat/x.PNG", "cat/deep/y.jpeg", "ape/z.bmp")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    reference = ImageFolder(tmp_path)
    images = open_labelled_images(tmp_path, num_classes=3)
    assert {(str(p), int(c)) for p, c in zip(images.paths, images.labels, strict=True)} == set(
        reference.samples
    )
    assert list(images.class_names or ()) == reference.classes == ["ape", "cat", "dog"]
    assert images.labels.tolist() == [0, 1, 1, 2, 2]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/._1.png", "b/1.png", ".ipynb_checkpoints/1.png")
    images = open_labelled_images(tmp_path, num_classes=2)
    assert [path.name for path in images.paths] == ["1.png", "1.png"]


@pytest.mark.parametrize("names", [("0", "2", "10"), ("000", "002", "010")])
def test_integer_folders_are_class_indices(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{name}.png" for name in names))
    images = open_labelled_images(tmp_path, num_classes=11)
    found = {path.stem: int(label) for path, label in zip(images.paths, images.labels, strict=True)}
    assert found == dict(zip(names, (0, 2, 10), strict=True))


def test_all_integer_folders_are_not_sorted_as_text(tmp_path: Path) -> None:
    put(tmp_path, *(f"{index}/{index}.png" for index in range(12)))
    images = open_labelled_images(tmp_path, num_classes=12)
    assert [int(path.stem) for path in images.paths] == images.labels.tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "neither a labels.csv nor a sub-folder"),
        (("a.png",), "neither a labels.csv nor a sub-folder"),
        (("cat/1.png", "dog/1.png"), "has 2 class folders and the model has 3 classes"),
        (tuple(f"{c}/1.png" for c in "abcd"), "has 4 class folders and the model has 3"),
        (("1/1.png", "3/1.png"), r"3: expected a label in 0\.\.2, got 3"),
        (("1/1.png", "01/1.png"), "two sub-folders for one class index"),
    ],
    ids=["empty", "only pictures", "too few", "too many", "outside", "twice"],
)
def test_faults_of_class_folders(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DatasetError, match=expected):
        open_labelled_images(tmp_path, num_classes=3)


def test_class_folders_without_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "readme.txt").write_text("x")
    with pytest.raises(DatasetError, match="holds a picture"):
        open_labelled_images(tmp_path, num_classes=2)


def test_what_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    with pytest.raises(DatasetError, match="which is not there"):
        open_labelled_images(tmp_path / "nowhere", num_classes=2)
    with pytest.raises(DatasetError, match="which is a file"):
        open_labelled_images(tmp_path / "a.png", num_classes=2)


def test_limit_takes_every_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{index}.png" for name in "abcd" for index in range(5)))
    images = open_labelled_images(tmp_path, num_classes=4, limit=4)
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert images.class_names == ("a", "b", "c", "d")
    assert len(open_labelled_images(tmp_path, num_classes=4, limit=100)) == 20
    assert len(set(open_labelled_images(tmp_path, num_classes=4, limit=19).paths)) == 19


@pytest.mark.parametrize(("num_classes", "limit"), [(0, None), (3, 0), (3, -1)])
def test_numbers_below_one_are_refused(tmp_path: Path, num_classes: int, limit: int | None) -> None:
    with pytest.raises(InvalidInputError, match="at least 1"):
        open_labelled_images(tmp_path, num_classes=num_classes, limit=limit)


def test_batches_cover_everything_once_in_order(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{index}.png" for name in "ab" for index in range(5)))
    images = open_labelled_images(tmp_path, num_classes=2)
    batches = list(iterate_batches(images, PREPROCESSING, batch_size=4))
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(
        np.concatenate([inputs for inputs, _ in batches]),
        preprocess_files(images.paths, PREPROCESSING),
    )
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), images.labels)
    for (inputs, labels), (pixels, same) in zip(
        batches, iterate_pixels(images, PREPROCESSING, batch_size=4), strict=True
    ):
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(normalise(pixels, PREPROCESSING), inputs)
        np.testing.assert_array_equal(same, labels)


def test_batch_size_is_checked_before_the_first_batch(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    images = open_labelled_images(tmp_path, num_classes=1)
    with pytest.raises(InvalidInputError, match="batch size must be at least 1; got 0"):
        iterate_batches(images, PREPROCESSING, batch_size=0)


def test_pictures_without_labels_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"has no pictures \(.*\.png") as caught:
        open_pictures(tmp_path, num_classes=3)
    assert "neither" not in str(caught.value)
    for missing, what in ((tmp_path / "nowhere", "not there"), (tmp_path / "notes.txt", "a file")):
        with pytest.raises(DatasetError, match=rf"a folder of pictures, got .* {what}; check"):
            open_pictures(missing, num_classes=3)
