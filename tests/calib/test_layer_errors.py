"""Errors of layers against a second computation, layer by layer, from the student's own grids."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from _helpers.tiny_students import (
    images,
    tiny_student,
    tiny_swin_student,
    tiny_swin_teacher,
    tiny_teacher,
)
from torch import Tensor, nn

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.layer_errors import LayerErrorSums


def db(exact: Tensor, other: Tensor) -> float:
    noise = (exact.double() - other.double()).square().sum()
    return 10 * math.log10(float(exact.double().square().sum() / noise))


def outputs_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every module, by name."""
    seen: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    sums = LayerErrorSums(tiny_student(4, 4), tiny_teacher())
    sums.add(images(3))
    return {row.layer: row for row in sums.errors()}


def test_every_layer_has_a_row_in_the_order_in_which_it_runs(rows: dict[str, Any]) -> None:
    block = ("attn.qkv", "attn.proj", "attn", "mlp.fc1", "mlp.fc2")
    assert list(rows) == [
        "patch_embed.proj",
        *(f"blocks.{number}.{name}" for number in range(2) for name in block),
        "head",
    ]
    kinds = [rows[name].kind for name in ("patch_embed.proj", "blocks.0.attn", "head")]
    assert kinds == ["convolution", "attention", "linear"]


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"])
def test_a_linears_own_error_is_that_of_its_operands(rows: dict[str, Any], name: str) -> None:
    student = tiny_student(4, 4)
    x, output = outputs_of(student, images(3))[name]
    layer: Any = student.get_submodule(name)
    assert rows[name].own_db == pytest.approx(db(x @ layer.weight.T + layer.bias, output))


def test_the_own_error_of_an_attention_is_that_of_its_products(rows: dict[str, Any]) -> None:
    student = tiny_student(4, 4)
    seen = outputs_of(student, images(3))
    qkv = seen["blocks.1.attn.qkv"][1]
    query, key, value = qkv.reshape(3, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    heads = (query @ key.transpose(-2, -1) / 4).softmax(dim=-1) @ value
    with torch.no_grad():
        exact = student.get_submodule("blocks.1.attn.proj")(heads.transpose(1, 2).flatten(2))
    assert rows["blocks.1.attn"].own_db == pytest.approx(db(exact, seen["blocks.1.attn"][1]))


def test_the_total_error_is_against_the_teacher(rows: dict[str, Any]) -> None:
    exact, given = outputs_of(tiny_teacher(), images(3)), outputs_of(tiny_student(4, 4), images(3))
    for name, row in rows.items():
        if name.endswith(".qkv"):  # reparametrization may move queries, keys and values
            assert row.total_db is None
        else:
            assert row.total_db == pytest.approx(db(exact[name][1], given[name][1]))


def test_batches_add_up() -> None:
    whole, parts = (LayerErrorSums(tiny_student(4, 4), tiny_teacher()) for _ in range(2))
    whole.add(images(4))
    parts.add(images(4)[:1])
    parts.add(images(4)[1:])
    for one, other in zip(whole.errors(), parts.errors(), strict=True):
        assert one.own_db == pytest.approx(other.own_db)
        assert one.total_db == pytest.approx(other.total_db)


def test_a_damaged_scale_shows_in_its_layer_alone(rows: dict[str, Any]) -> None:
    student = copy.deepcopy(tiny_student(4, 4))
    student.get_parameter("blocks.0.mlp.fc1.weight_quantizer.scale").data *= 4
    sums = LayerErrorSums(student, tiny_teacher())
    sums.add(images(3))
    lost = {row.layer: rows[row.layer].own_db - row.own_db for row in sums.errors()}
    assert max(lost, key=lambda name: lost[name]) == "blocks.0.mlp.fc1"
    assert lost["blocks.0.mlp.fc1"] > 5


def test_without_quantization_no_error_is_finite() -> None:
    student = copy.deepcopy(tiny_student(4, 4))
    for quantizer in quantizers_of(student):
        quantizer.enabled = False
    sums = LayerErrorSums(student, tiny_teacher())
    sums.add(images(1))
    assert all(row.own_db is None for row in sums.errors())


def test_windows_and_patch_merging_have_rows_too() -> None:
    sums = LayerErrorSums(tiny_swin_student(4, 4), tiny_swin_teacher())
    sums.add(images(2))
    rows = {row.layer: row for row in sums.errors()}
    assert "layers.1.downsample.reduction" in rows
    assert all(row.own_db is not None and row.own_db > 0 for row in rows.values())


def test_the_student_is_left_as_it_was() -> None:
    student = tiny_student(4, 4)
    with torch.no_grad():
        before = student(images(2))
        LayerErrorSums(student, tiny_teacher()).add(images(2))
        assert torch.equal(student(images(2)), before)
    assert not any(module._forward_hooks for module in student.modules())
