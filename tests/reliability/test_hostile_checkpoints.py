"""Checkpoints that want to run code, to fill the memory, or are not what they say."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251  hostile files are made by it
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.hostile import refused
from _helpers.tiny_students import tiny_vit
from safetensors.torch import save, save_file

from mimiq_calib.model_loading import load_checkpoint_file, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARCHITECTURE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


class Shell:
    """Unpickled, it would write a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


def weights() -> dict[str, torch.Tensor]:
    return dict(tiny_vit().state_dict())


def changed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**weights(), name: value}


def header(content: Any, length: int | None = None, tail: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def torch_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def packed(data: bytes) -> bytes:
    """The same archive with its entries compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


def entry(begin: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}}


HEAD = "head.weight"
SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "seven bytes": lambda: b"\x08" + bytes(6),
    "cut in the header": lambda: save(weights())[:100],
    "cut in the tensors": lambda: save(weights())[:-1],
    "with a tail": lambda: save(weights()) + b"more",
    "header of 2^63 bytes": lambda: header({}, 2**63),
    "header of 4 GiB": lambda: header({}, 2**32),
    "header is no JSON": lambda: header(b"not json"),
    "header is a list": lambda: header([1, 2]),
    "header nested deeply": lambda: header(b'{"a":' * 50_000),
    "offsets beyond the end": lambda: header(entry(0, 4000, [1000]), tail=bytes(4)),
    "offsets backwards": lambda: header(entry(8, 4, [1]), tail=bytes(8)),
    "shape that overflows": lambda: header(entry(0, 4, [2**33, 2**33]), tail=bytes(4)),
    "unknown type": lambda: header(entry(0, 4, [1], "F31"), tail=bytes(4)),
    "another model": lambda: save({"weight": torch.zeros(3)}),
    "a tensor too few": lambda: save({k: v for k, v in weights().items() if k != "norm.bias"}),
    "another shape": lambda: save(changed("norm.bias", torch.zeros(3))),
    "another number of classes": lambda: save(changed("head.bias", torch.zeros(4))),
    "NaN": lambda: save(changed(HEAD, torch.full((10, 48), torch.nan))),
    "infinity": lambda: save(changed(HEAD, torch.full((10, 48), -torch.inf))),
    "infinity in half precision": lambda: save(
        changed(HEAD, torch.full((10, 48), 1e9).to(torch.float16))
    ),
}


def unlike_pickle(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Shell(canary)})


TORCH: dict[str, Callable[[Any], bytes]] = {
    "pickle with code": unlike_pickle,
    "archive with code": lambda canary: torch_bytes({"state_dict": {"a": Shell(canary)}}),
    "old archive with code": lambda canary: torch_bytes(
        Shell(canary), _use_new_zipfile_serialization=False
    ),
    "a whole module": lambda canary: torch_bytes(torch.nn.Linear(2, 2)),
    "cut": lambda canary: torch_bytes(weights())[:-100],
    "text": lambda canary: b"weights\n" * 100,
    "empty archive": lambda canary: b"PK\x05\x06" + bytes(18),
    "packed": lambda canary: packed(torch_bytes({"head.weight": torch.zeros(2**22)})),
    "larger than its storage": lambda canary: torch_bytes(
        changed(HEAD, torch.zeros(1).expand(10, 48))
    ),
    "a billion classes": lambda canary: torch_bytes(
        changed(HEAD, torch.zeros(1, 1).expand(10**9, 48))
    ),
    "sparse": lambda canary: torch_bytes(changed(HEAD, torch.eye(10, 48).to_sparse())),
    "complex": lambda canary: torch_bytes(changed(HEAD, torch.zeros(10, 48, dtype=torch.cfloat))),
    "integers": lambda canary: torch_bytes(changed(HEAD, torch.zeros(10, 48, dtype=torch.int64))),
    "truths": lambda canary: torch_bytes(changed(HEAD, torch.zeros(10, 48, dtype=torch.bool))),
    "8-bit floating point": lambda canary: torch_bytes(
        changed(HEAD, torch.zeros(10, 48).to(torch.float8_e4m3fn))
    ),
    "8-bit exponents": lambda canary: torch_bytes(
        changed(HEAD, torch.ones(10, 48).to(torch.float8_e8m0fnu))
    ),
    "beyond single precision": lambda canary: torch_bytes(
        changed(HEAD, torch.full((10, 48), 1e300, dtype=torch.float64))
    ),
    "no tensors": lambda canary: torch_bytes({"epoch": 3}),
    "a list": lambda canary: torch_bytes([torch.zeros(3)]),
}


def arguments(checkpoint: Path, **architecture: Any) -> list[object]:
    chosen = {**ARCHITECTURE, **architecture}
    options = [("--model-arg", f"{key}={value}") for key, value in chosen.items()]
    return [
        *("calibrate", "vit_tiny_patch16_224", "--checkpoint", checkpoint),
        *("-o", checkpoint.parent / "run", *(part for pair in options for part in pair)),
    ]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    return folder


def check(checkpoint: Path, outside: Path, **architecture: Any) -> str:
    sentence = refused(arguments(checkpoint, **architecture), outside)
    assert not (checkpoint.parent / "run").exists()
    return sentence


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path: Path, outside: Path, name: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(SAFETENSORS[name]())
    sentence = check(path, outside)
    assert str(path) in sentence or "and the weights have" in sentence


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_types_that_are_no_weights(
    tmp_path: Path, outside: Path, kind: torch.dtype, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = changed(HEAD, torch.zeros(10, 48).to(kind))
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    assert f"{HEAD} as {kind}; expected float32" in check(path, outside)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_that_are(tmp_path: Path, kind: torch.dtype) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: value.to(kind) for name, value in weights().items()}, path)
    model = tiny_vit()
    torch.nn.init.zeros_(model.head.weight)
    load_weights(model, load_checkpoint_file(path), origin="a test")
    assert torch.equal(model.head.weight, weights()[HEAD].to(kind).float())


@pytest.mark.parametrize("name", TORCH)
def test_files_of_torch(tmp_path: Path, outside: Path, name: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(TORCH[name](outside / "canary"))
    assert str(path) in check(path, outside)


def test_the_code_would_have_run(tmp_path: Path) -> None:
    """A canary that cannot sing shows nothing."""
    pickle.loads(pickle.dumps(Shell(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "architecture", [{"depth": 10**9}, {"embed_dim": 60_000}, {"img_size": 10**7}], ids=str
)
def test_arguments_that_would_fill_the_memory(
    tmp_path: Path, outside: Path, architecture: dict[str, int]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights(), path)
    check(path, outside, **architecture)


def test_a_folder_in_its_place(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "weights.pth").mkdir()
    check(tmp_path / "weights.pth", outside)
