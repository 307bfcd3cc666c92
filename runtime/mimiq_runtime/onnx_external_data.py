"""Which files an ONNX file takes its weights from, without the library onnx.

An ONNX file may name further files by a path of its own choice, and whatever opens it reads them.
So the protobuf message is walked here, on the device too, and every name is looked at before any
engine sees the file: those must be regular files beside it, by a bare name. Engines take some
paths for no path at all: ``*/_ORT_MEM_ADDR_/*`` is an address in memory to ONNX Runtime and
OpenVINO, whether or not there is such a file. Only the lengths of fields are read, never their
content, so that the size of the weights does not matter.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from mimiq_runtime.errors import OnnxModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LARGEST_MESSAGE", "ExternalData", "check_external_data", "external_data_of"]

LARGEST_MESSAGE = 2**31 - 1
"""Bytes of the largest protobuf message, by its definition; larger weights lie in other files."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2
_DEEPEST = 100  # protobuf's own limit
_LONGEST_TEXT = 4096
_LONGEST_NAME = 255  # bytes, that of Linux and of most file systems

# Message, field number -> message: the ways from the model to its tensors.
_TENSOR = "tensor"
_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
}


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor has its values outside of the ONNX file.

    Attributes:
        location: Path of the file, relative to the folder of the ONNX file, as it is written.
        offset: First byte in it.
        length: Number of bytes; None for all that follow.
    """

    location: str
    offset: int
    length: int | None


def check_external_data(model: Path) -> None:
    """Refuse an ONNX file that reaches for files other than those beside it.

    Raises:
        OnnxModelError: The file cannot be read, is no protobuf message, or names a file by more
            than a bare name, or one that is a link out of the folder, is missing, or too short.
    """
    folder = model.parent.resolve()
    for data in external_data_of(model):
        if not _is_bare_name(data.location):
            raise OnnxModelError(
                f"{model} wants its weights from {data.location[:200]!r}, and only files beside "
                "it are read, by a bare name; export it again."
            )
        path = model.parent / data.location
        if not _resolves_into(path, folder):
            raise OnnxModelError(
                f"{model} wants its weights from {path}, which is a link to another folder; put "
                "the file itself beside it."
            )
        if not path.is_file():
            raise OnnxModelError(
                f"{model} needs {data.location[:200]} beside it, and it is not there; copy both."
            )
        end = data.offset + (data.length or 0)
        if end > path.stat().st_size:
            raise OnnxModelError(
                f"{model} wants {end} bytes of {path}, which has {path.stat().st_size}; copy both "
                "files again."
            )


def _is_bare_name(location: str) -> bool:
    """Whether a location is the name of a file in one folder, on every system."""
    return (
        PurePosixPath(location).name == PureWindowsPath(location).name == location
        and location not in ("", "..")
        and location.isprintable()
        and len(location.encode()) <= _LONGEST_NAME
    )


def _resolves_into(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # links that lead to one another
        return False


def external_data_of(model: Path) -> list[ExternalData]:
    """All references of an ONNX file to other files, each of them once.

    Raises:
        OnnxModelError: The file cannot be read, or is no protobuf message.
    """
    try:
        with model.open("rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_MESSAGE:
                raise ValueError("it is larger than 2 GiB, which no protobuf message is")
            # Not closed by hand: views into it may live on in an error's traceback.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return list(dict.fromkeys(_walk(memoryview(data), "model", 0)))
    # mmap refuses an empty file with a ValueError.
    except (OSError, ValueError) as error:
        raise OnnxModelError(
            f"{model} is not an ONNX model, or is damaged ({error}); export it again."
        ) from error


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[ExternalData]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    ways = _WAYS[kind]
    for number, content in _length_delimited(message):
        inner = ways.get(number)
        if inner == _TENSOR:
            reference = _reference(content)
            if reference is not None:
                yield reference
        elif inner is not None:
            yield from _walk(content, inner, depth + 1)


def _reference(tensor: memoryview) -> ExternalData | None:
    entries = [entry for number, entry in _length_delimited(tensor) if number == _EXTERNAL_DATA]
    if not entries:
        return None
    # Of a key that is there twice, readers may take either.
    named: dict[str, str] = {}
    for entry in entries:
        fields = {number: _text(content) for number, content in _length_delimited(entry)}
        key = fields.get(_KEY, "")
        if key in named:
            raise ValueError(f"a tensor has {key[:80]!r} more than once")
        named[key] = fields.get(_VALUE, "")
    length = named.get("length")
    return ExternalData(
        location=named.get("location", ""),
        offset=_size(named.get("offset", "0")),
        length=None if length is None else _size(length),
    )


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"a tensor has {text[:80]!r} as offset or length")
    return int(text)


def _text(content: memoryview) -> str:
    if len(content) > _LONGEST_TEXT:
        raise ValueError("a tensor has a reference that is too long")
    return bytes(content).decode("utf-8")


def _length_delimited(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that holds bytes, a text or a message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, position = _varint(message, position)
            end = position + length
            if end > len(message):
                raise ValueError("it ends too early")
            yield number, message[position:end]
            position = end
        elif wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field is of the unknown kind {wire}")
        if number == 0:
            raise ValueError("a field has the number 0")
    if position > len(message):
        raise ValueError("it ends too early")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer of up to ten bytes, seven bits in each, and where it ends."""
    value = 0
    for index in range(10):
        if position + index >= len(message):
            raise ValueError("it ends too early")
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("an integer in it does not end")
