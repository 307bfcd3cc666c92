"""Labelled pictures in a folder: an ImageFolder, or files listed in ``labels.csv``.

``labels.csv`` is UTF-8 with a header that has the columns ``file`` (path relative to the folder)
and ``label`` (class index); other columns are ignored. Without it every sub-folder is one class.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.bounded_file import read_text
from mimiq_runtime.errors import DatasetError, InvalidInputError
from mimiq_runtime.images import IMAGE_SUFFIXES
from mimiq_runtime.preprocessing import normalise, read_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mimiq_runtime.manifest import Preprocessing

__all__ = [
    "LABELS_FILE",
    "LabelledImages",
    "Pictures",
    "iterate_batches",
    "iterate_pixels",
    "open_labelled_images",
    "open_pictures",
]

LABELS_FILE = "labels.csv"

_COLUMNS = ("file", "label")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Pictures with the class of each.

    Attributes:
        paths: One file a picture; each existed when the folder was opened.
        labels: Class index of each picture (N,), in 0 .. classes - 1.
        class_names: Name of every class in the order of the indices, or None when not known.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)


def open_labelled_images(
    folder: Path, *, num_classes: int, limit: int | None = None
) -> LabelledImages:
    """Find the pictures of a folder and their labels; no picture is decoded yet.

    With ``labels.csv`` the order is that of its rows. Without it each sub-folder is a class:
    when all their names are integers, the name is the class index; otherwise there must be
    exactly ``num_classes`` of them and their sorted names give the indices, as in torchvision's
    ImageFolder. Hidden files and folders are passed over.

    Args:
        folder: Where the pictures are.
        num_classes: Length of the model's logits.
        limit: Take at most this many pictures, evenly spaced over all of them, so that a folder
            that is sorted by class still gives every class its share.

    Raises:
        DatasetError: The folder cannot be used.
        InvalidInputError: ``num_classes`` or ``limit`` is less than 1.
    """
    if num_classes < 1 or (limit is not None and limit < 1):
        raise InvalidInputError(
            f"num_classes and limit must be at least 1; got {num_classes} and {limit}."
        )
    _check_folder(folder, "labelled pictures")
    if _has_labels_file(folder):
        images = _from_labels_file(folder, num_classes)
    else:
        images = _from_class_folders(folder, num_classes)
    return images if limit is None else _spread(images, limit)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that need no labels.

    Attributes:
        paths: One file a picture.
        labels: Class index of each picture (N,), or None where nothing tells them.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None


def open_pictures(folder: Path, *, num_classes: int, limit: int | None = None) -> Pictures:
    """Find the pictures of a folder, with their labels where it tells them.

    As :func:`open_labelled_images`; but a folder that has neither ``labels.csv`` nor sub-folders,
    and pictures, is taken as it is, in the order of their names, without labels.

    Raises:
        DatasetError: The folder cannot be used.
        InvalidInputError: ``num_classes`` or ``limit`` is less than 1.
    """
    _check_folder(folder, "pictures")
    if not _has_labels_file(folder) and not _class_names(folder):
        paths = tuple(_pictures_under(folder))
        if not paths:
            raise DatasetError(
                f"{folder} has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}); put some into "
                f"it, with a {LABELS_FILE} or in a sub-folder for each class to measure accuracy."
            )
        return Pictures(tuple(paths[index] for index in _evenly(len(paths), limit)), None)
    images = open_labelled_images(folder, num_classes=num_classes, limit=limit)
    return Pictures(images.paths, images.labels)


def iterate_batches(
    images: LabelledImages, preprocessing: Preprocessing, *, batch_size: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Read and preprocess pictures, a batch at a time, in their order.

    Returns:
        Iterator over the model's input (n, C, H, W) and the labels (n,); n is ``batch_size``
        but for the last batch, which may be smaller.

    Raises:
        InvalidInputError: ``batch_size`` is less than 1.
        ImageError: While iterating: a picture cannot be read.
    """
    batches = iterate_pixels(images, preprocessing, batch_size=batch_size)
    return ((normalise(pixels, preprocessing), labels) for pixels, labels in batches)


def iterate_pixels(
    images: LabelledImages, preprocessing: Preprocessing, *, batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Read, resize and crop pictures, a batch at a time, in their order.

    Returns:
        Iterator over uint8 pixels (n, C, H, W) and the labels (n,), as :func:`iterate_batches`.

    Raises:
        InvalidInputError: ``batch_size`` is less than 1.
        ImageError: While iterating: a picture cannot be read.
    """
    if batch_size < 1:
        raise InvalidInputError(f"The batch size must be at least 1; got {batch_size}.")
    return (
        (
            read_pixels(images.paths[start : start + batch_size], preprocessing),
            images.labels[start : start + batch_size],
        )
        for start in range(0, len(images), batch_size)
    )


def _check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise DatasetError(
            f"Expected a folder of {content}, got {folder}, which is "
            f"{'a file' if folder.exists() else 'not there'}; check the path."
        )


def _spread(images: LabelledImages, limit: int) -> LabelledImages:
    chosen = _evenly(len(images), limit)
    paths = tuple(images.paths[index] for index in chosen)
    return LabelledImages(paths, images.labels[chosen], images.class_names)


def _evenly(count: int, limit: int | None) -> NDArray[np.int64]:
    """Which of ``count`` pictures are taken, at most ``limit`` and evenly spaced."""
    taken = count if limit is None else min(limit, count)
    return np.arange(taken) * count // max(taken, 1)


def _has_labels_file(folder: Path) -> bool:
    """Whether there is anything of this name: what cannot be read is told, not passed over."""
    return os.path.lexists(folder / LABELS_FILE)


def _from_labels_file(folder: Path, num_classes: int) -> LabelledImages:
    source = folder / LABELS_FILE
    rows = _read_rows(source)
    if not rows:
        raise DatasetError(
            f"{source} lists no pictures; add a row (file,label) for each picture to be validated."
        )
    files = [_relative_file(source, line, file) for line, file, _ in rows]
    labels = [_label(f"{source}, line {line}", text, num_classes) for line, _, text in rows]
    twice = [str(file) for file, count in Counter(files).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{source} lists {len(twice)} file(s) more than once, such as {twice[0]}; "
            "keep one row for each picture."
        )
    paths = tuple(folder / file for file in files)
    # Path.is_file raises where a name is too long to ask for.
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DatasetError(
            f"{source} lists {len(missing)} file(s) that are not there, such as {missing[0]}; "
            "add the files or remove their rows."
        )
    return LabelledImages(paths, np.asarray(labels, dtype=np.int64))


def _read_rows(source: Path) -> list[tuple[int, str, str]]:
    """Line number, file and label of each row that is not blank."""
    try:
        # Spreadsheets put a byte order mark before the header.
        text = read_text(source).removeprefix("\ufeff")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        file_at, label_at = _columns(source, header)
        rows = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DatasetError(
                    f"{source}, line {reader.line_num}: expected {len(header)} values, "
                    f"got {len(row)}; put names that hold a comma in double quotes."
                )
            rows.append((reader.line_num, row[file_at].strip(), row[label_at].strip()))
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{source} cannot be read as comma-separated UTF-8: {error}; save it anew."
        ) from error
    return rows


def _columns(source: Path, header: Sequence[str]) -> tuple[int, int]:
    for name in _COLUMNS:
        if header.count(name) != 1:
            got = ",".join(header)[:200] or "nothing"
            raise DatasetError(
                f"{source} needs a header with one column file and one column label, and "
                f"{name} is there {header.count(name)} times (header: {got}); mend its first line."
            )
    return header.index("file"), header.index("label")


def _relative_file(source: Path, line: int, text: str) -> PurePath:
    file = PurePath(text)
    if not text or file.is_absolute() or ".." in file.parts:
        raise DatasetError(
            f"{source}, line {line}: expected a path inside the folder, relative to it, "
            f"got {text[:200]!r}; move the picture into the folder."
        )
    return file


def _label(where: str, text: str, num_classes: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise DatasetError(
            f"{where}: expected an integer class index as label, got {text[:200]!r}; "
            "write the index of the class, not its name."
        )
    label = int(text)
    if not 0 <= label < num_classes:
        raise DatasetError(
            f"{where}: expected a label in 0..{num_classes - 1}, got {label}; "
            "check that the labels belong to this model and start at 0."
        )
    return label


def _from_class_folders(folder: Path, num_classes: int) -> LabelledImages:
    names = _class_names(folder)
    if not names:
        raise DatasetError(
            f"{folder} has neither a {LABELS_FILE} nor a sub-folder for each class; make one of "
            "the two."
        )
    indices, class_names = _class_indices(folder, names, num_classes)
    paths: list[Path] = []
    labels: list[int] = []
    for name, index in zip(names, indices, strict=True):
        found = _pictures_under(folder / name)
        paths += found
        labels += [index] * len(found)
    if not paths:
        raise DatasetError(
            f"No sub-folder of {folder} holds a picture ({', '.join(sorted(IMAGE_SUFFIXES))}); "
            "put the pictures of each class into its folder."
        )
    return LabelledImages(tuple(paths), np.asarray(labels, dtype=np.int64), class_names)


def _class_names(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _class_indices(
    folder: Path, names: Sequence[str], num_classes: int
) -> tuple[list[int], tuple[str, ...] | None]:
    if all(_INTEGER.fullmatch(name) for name in names):
        indices = [_label(f"Sub-folder {folder / name}", name, num_classes) for name in names]
        if len(set(indices)) != len(indices):
            raise DatasetError(
                f"{folder} has two sub-folders for one class index among {', '.join(names)}; "
                "merge them."
            )
        return indices, None
    if len(names) != num_classes:
        raise DatasetError(
            f"{folder} has {len(names)} class folders and the model has {num_classes} classes, so "
            f"their order does not tell the class; name each folder by its class index, or add "
            f"a {LABELS_FILE}."
        )
    return list(range(num_classes)), tuple(names)


def _pictures_under(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    for path in found:
        # They are written down with what each model said.
        if os.fsencode(path).decode("utf-8", "replace") != str(path):
            raise DatasetError(
                f"The name {path.name[:200]!r} below {folder} is not UTF-8; rename the picture."
            )
    return found
