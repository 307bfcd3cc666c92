from __future__ import annotations

import pytest
from _helpers.calib_cases import quantization
from _helpers.tiny_students import tiny_vit
from pydantic import ValidationError

from mimiq_calib.conversion.convert import (
    build_student,
    check_layer_bits,
    expose_attention,
    quantizers_of,
)
from mimiq_runtime.errors import InvalidInputError


def bits_of(**settings: object) -> dict[str, int]:
    student = build_student(expose_attention(tiny_vit()), quantization(4, 6, **settings))
    return {quantizer.name: quantizer.bits for quantizer in quantizers_of(student)}


def test_patterns_reach_their_layers_only() -> None:
    plain = bits_of()
    chosen = {"blocks.1.*": "a7", "*.fc2": "w8a8", "blocks.0.attn.probability": "a5"}
    changed = {
        name: bits for name, bits in bits_of(layer_bits=chosen).items() if bits != plain[name]
    }
    inputs = ("attn.qkv", "attn.proj", "mlp.fc1")
    assert changed == {
        **{f"blocks.1.{layer}.input_quantizer": 7 for layer in inputs},
        **{f"blocks.1.attn.{slot}_quantizer": 7 for slot in ("query", "key", "value")},
        "blocks.1.attn.probability_quantizer": 7,
        **{f"blocks.{block}.mlp.fc2.input_quantizer": 8 for block in (0, 1)},
        **{f"blocks.{block}.mlp.fc2.weight_quantizer": 8 for block in (0, 1)},
        "blocks.0.attn.probability_quantizer": 5,
    }


def test_the_last_pattern_counts() -> None:
    settings = quantization(4, 4, layer_bits={"*.fc1": "w8a8", "blocks.0.*": "w5", "head": "a3"})
    assert settings.bits_of_layer("blocks.0.mlp.fc1") == (5, 8)
    assert settings.bits_of_layer("blocks.1.mlp.fc1") == (8, 8)
    assert settings.bits_of_layer("head") == (8, 3), "more than last_layer_bits, where it says so"


def test_names_are_compared_as_a_whole_and_by_case() -> None:
    settings = quantization(4, 4, layer_bits={"fc1": "w8", "*.FC1": "w8", "blocks.?.mlp.fc2": "w6"})
    assert settings.bits_of_layer("blocks.0.mlp.fc1") == (4, 4)
    assert settings.bits_of_layer("blocks.0.mlp.fc2") == (6, 4)
    assert settings.bits_of_layer("blocks.10.mlp.fc2") == (4, 4)


def test_signed_probabilities() -> None:
    for signed in (False, True):
        settings = quantization(4, 4, signed_probabilities=signed)
        student = build_student(expose_attention(tiny_vit()), settings)
        grids = [q.grid for q in quantizers_of(student) if "probability" in q.name]
        assert [(grid.qmin, grid.qmax) for grid in grids] == 2 * [(-8, 7) if signed else (0, 15)]


@pytest.mark.parametrize("widths", ["", "8", "w1", "a9", "a4w4", "w4a4 ", "W4A4"])
def test_notation(widths: str) -> None:
    with pytest.raises(ValidationError, match="layer_bits"):
        quantization(4, 4, layer_bits={"head": widths})


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    teacher = expose_attention(tiny_vit())
    check_layer_bits(teacher, quantization(layer_bits={"blocks.*.attn.query": "a8", "head": "w8"}))
    wrong = quantization(layer_bits={"head": "w8", "block.*": "w8"})
    for model in (teacher, build_student(teacher, quantization())):
        with pytest.raises(InvalidInputError, match=r"'block\.\*'; there are 18 names.*and head"):
            check_layer_bits(model, wrong)
