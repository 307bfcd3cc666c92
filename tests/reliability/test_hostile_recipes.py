"""Recipes and settings: bombs, tags, unknown keys, numbers that nobody means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _helpers.hostile import refused
from _helpers.runs import make_run

from mimiq_deploy.gate_file import read_gate_file
from mimiq_deploy.strict_yaml import YAML_ERRORS, parse_yaml

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
name: good
quantization: {weight_bits: 4, activation_bits: 4}
synthesis: {num_images: 4}
"""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE: dict[str, str | bytes] = {
    "billion laughs": BOMB,
    "one alias": "a: &a 1\nb: *a\n",
    "an alias of itself": "a: &a [*a]\n",
    "merge key": "a: &a {b: 1}\nc: {<<: *a}\n",
    "python object": "!!python/object/apply:os.system ['touch CANARY']\n",
    "python object, new": "a: !!python/object/new:os.system ['touch CANARY']\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "a: !!python/module:os\n",
    "a tag of nobody": "!shell 'touch CANARY'\n",
    "nested flow": "a: " + "[" * 30_000,
    "nested maps": "{a: " * 15_000,
    "nested blocks": "\n".join(" " * i + "a:" for i in range(300)),
    "100 KB": "#" * 100_000,
    "two documents": GOOD + "---\n" + GOOD,
    "a key twice": GOOD + "name: again\n",
    "a key that is a list": "[a, b]: 1\n",
    "a list": "- a\n- b\n",
    "a word": "calibrate",
    "empty": "",
    "nothing but a comment": "# name: x\n",
    "zero bytes inside": b"name: a\x00b\n",
    "not UTF-8": b"name: \xff\xfe\xfa\n",
    "UTF-16": "name: x\n".encode("utf-16"),
    "a tab": "name:\n\t- x\n",
    "unknown section": GOOD + "shell: {command: ls}\n",
    "unknown key": GOOD.replace("num_images", "num_imagse"),
    "not a number": GOOD + "distillation: {learning_rate: .nan}\n",
    "infinite": GOOD + "distillation: {learning_rate: .inf}\n",
    "negative": GOOD.replace("num_images: 4", "num_images: -4"),
    "a trillion images": GOOD.replace("num_images: 4", "num_images: 1000000000000"),
    "a number of 5000 digits": GOOD.replace("num_images: 4", "num_images: " + "9" * 5000),
    "a sexagesimal number": GOOD.replace("weight_bits: 4", "weight_bits: 1:30"),
    "bits of a word": GOOD.replace("weight_bits: 4", "weight_bits: four"),
    "a date of no calendar": GOOD + "a: 2026-99-99\n",
    "binary": GOOD + "a: !!binary '*'\n",
    "a folder for another source": GOOD.replace("{num_images: 4", "{folder: /etc, num_images: 4"),
    "bits of a layer": GOOD.replace("{weight", "{layer_bits: {'*': w99}, weight"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_recipe(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = HOSTILE[name]
    (tmp_path / "hostile").mkdir()
    path = tmp_path / "hostile" / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = refused(
        ["calibrate", "vit_tiny_patch16_224", "-o", tmp_path / "run", "--recipe", path], tmp_path
    )
    assert "recipe" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [
        *("", "=", "a", "=3", "quantization", "name.first=x", "...=1", "a.b.c.d=1"),
        "distillation.epochs=!!python/object/apply:os.system ['touch CANARY']",
        "distillation.epochs=" + "[" * 20_000,
        "distillation.epochs=&a [*a]",
        "distillation.epochs=1e9999",
        "distillation.epochs=-1",
        "distillation.epochs=99999999999999999999",
        "quantization.weight_bits=9",
        "quantization={}",
    ],
    ids=lambda setting: setting[:40],
)
def test_setting(tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(
        ["calibrate", "vit_tiny_patch16_224", "-o", tmp_path / "run", "--set", setting], tmp_path
    )


@pytest.mark.parametrize("bits", ["", "w4", "w4a", "w1a8", "w4a9", "w4a4 ", "w٤a٤", "w" * 5000])
def test_bits(tmp_path: Path, bits: str) -> None:
    refused(["calibrate", "vit_tiny_patch16_224", "-o", tmp_path / "run", "--bits", bits], tmp_path)


@pytest.mark.parametrize("kind", ["a folder", "a loop of links", "not there"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.yaml"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a loop of links":
        path.symlink_to(path)
    refused(
        ["calibrate", "vit_tiny_patch16_224", "-o", tmp_path / "run", "--recipe", path], tmp_path
    )


@pytest.mark.parametrize(
    "number",
    [
        "0x" + "f" * 5000,
        "0b" + "1" * 20_000,
        "0" + "7" * 9000,
        "9" * 4000,
        "9" * 5000,
        "1:" * 900 + "1",
    ],
    ids=lambda number: f"{number[:3]} of {len(number)}",
)
def test_integers_beyond_any_setting(tmp_path: Path, number: str) -> None:
    """Python counts the digits of decimal ones only, and cannot print the others."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "hostile.yaml"
    path.write_text(f"synthesis:\n  num_images: {number}\n")
    make_run(tmp_path / "run")
    target = ["calibrate", "vit_tiny_patch16_224", "-o", tmp_path / "new"]
    for words in (
        [*target, "--recipe", path],
        [*target, "--set", f"synthesis.num_images={number}"],
        [*target, "--model-arg", f"depth={number}"],
        [*target, "--preprocessing", f"mean=[{number},0,0]"],
        ["validate", tmp_path / "run", "--gates", path],
    ):
        assert len(refused(words, tmp_path / "outside")) < 1600


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"a\\udfffb"', '{"\\ud800": 1}', '["\\ud83d\\ude00"]']
)
def test_halves_of_characters(tmp_path: Path, text: str) -> None:
    """YAML has no pairs of them: each is half of a character, and cannot be written."""
    with pytest.raises(YAML_ERRORS, match="half of a character"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("-2E5", -2e5), ("1.5e3", 1500.0), ("3.e1", 30.0), ("+1e+2", 100.0)],
)
def test_powers_of_ten_are_numbers(text: str, value: float) -> None:
    """Against JSON, which takes them for numbers; PyYAML does not where no sign or dot is there."""
    parsed = parse_yaml(text)
    assert isinstance(parsed, float)
    assert parsed == value


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "0x1e5", "a1e5", "v1e5"])
def test_what_only_looks_like_one(text: str) -> None:
    assert not isinstance(parse_yaml(text), float)


GATES = {
    "a truth for a number": "validate: {min_agreement: true}",
    "a text for a number": 'validate: {min_agreement: "0.9"}',
    "a truth for a tolerance": "bench: {tolerance: false}",
    "an infinity": "validate: {max_kl: .inf}",
    "no number": "validate: {min_sqnr: .nan}",
    "a date": "validate: {min_agreement: 2024-01-01}",
    "a list": "validate: {min_agreement: [0.9]}",
    "bytes": "validate: {min_agreement: !!binary MC45}",
    "a set": "validate: {engines: !!set {ort-cpu}}",
    "a list of nothing": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("name", GATES)
def test_gates(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "gates.yaml").write_text(GATES[name])
    make_run(tmp_path / "run")
    words = ["validate", tmp_path / "run", "--gates", tmp_path / "gates.yaml"]
    assert "The gates" in refused(words, tmp_path / "outside")


def test_gates_that_are_gates(tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("validate: {min_agreement: 1, max_kl: 1e-3}\n")
    gates = read_gate_file(tmp_path / "gates.yaml").validate_
    assert (gates.min_agreement, gates.max_kl) == (1.0, 1e-3)
