from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mimiq_deploy.gate_file import read_gate_file, resolve_limits
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import Gate

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
validate:
  min_agreement: 0.98
  max_drop: 1
  engines:
    openvino: {min_agreement: 0.95, min_sqnr: 20}
bench:
  tolerance: 0.05
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "gates.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_engine_has_its_own_limits_and_the_common_ones(tmp_path: Path) -> None:
    file = read_gate_file(written(tmp_path, WHOLE))
    limits = resolve_limits(file, ["ort-cpu", "openvino"], {"max_kl": None})
    assert limits["ort-cpu"].given == {Gate.MAX_DROP: 1, Gate.MIN_AGREEMENT: 0.98}
    assert limits["openvino"].given == {
        Gate.MAX_DROP: 1,
        Gate.MIN_AGREEMENT: 0.95,
        Gate.MIN_SQNR: 20,
    }
    assert file.bench.tolerance == 0.05


def test_the_command_line_goes_before(tmp_path: Path) -> None:
    file = read_gate_file(written(tmp_path, WHOLE))
    limits = resolve_limits(file, ["openvino"], {"min_agreement": 0.5, "max_drop": None})
    assert limits["openvino"].given[Gate.MIN_AGREEMENT] == 0.5
    assert limits["openvino"].given[Gate.MAX_DROP] == 1
    with pytest.raises(InvalidInputError, match=r"min_agreement.*95.*max_kl"):
        resolve_limits(None, ["ort-cpu"], {"min_agreement": 95, "max_kl": -1})


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = "validate: {min_agreement: 98, mx_drop: 1, engines: {abacus: {}}}\nbnch: {}\n"
    with pytest.raises(InvalidInputError) as caught:
        read_gate_file(written(tmp_path, text))
    for words in ("min_agreement", "got 98", "mx_drop: unknown key", "abacus", "bnch: unknown key"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("- a\n", "not valid", id="list"),
        pytest.param("", "not valid", id="empty"),
        pytest.param("a: [", "cannot be used", id="no-yaml"),
        pytest.param("bench: {}\nbench: {}\n", "more than once", id="twice"),
        pytest.param("validate: &x {}\nbench: *x\n", "aliases", id="alias"),
        pytest.param("!!python/object/apply:os.getcwd []", "cannot be used", id="object"),
        pytest.param("#" * 70_000, "larger than", id="large"),
    ],
)
def test_what_is_no_gate_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        read_gate_file(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_gate_file(tmp_path / "nowhere.yaml")
