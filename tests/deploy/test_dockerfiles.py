"""The images of docs/how-to/containers.md, as far as reading tells."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITH_TORCH = {"calib", "export", "all"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Word and arguments of each instruction, lines joined, comments dropped."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def arguments(path: Path) -> dict[str, str]:
    given = (rest.split("=", 1) for word, rest in instructions(path) if word == "ARG")
    return dict(given)


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_is_one_for_each_kind_of_device() -> None:
    assert [path.name for path in FILES] == [
        f"{name}.Dockerfile" for name in ("cpu", "gpu", "jetson")
    ]
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text()
    assert all(f"docker/{path.name}" in page for path in FILES)


def test_bases_are_pinned(file: Path) -> None:
    bases = [rest.split()[0] for word, rest in instructions(file) if word == "FROM"]
    assert len(bases) == 2
    for base in bases:
        name = re.sub(r"\$\{(\w+)\}", lambda found: arguments(file)[found[1]], base)
        tag = name.rpartition(":")[2]
        # Python by all three numbers; NVIDIA's by month.
        assert re.match(r"\d+\.\d+\.\d+-|\d\d\.\d\d-", tag), name


def test_it_ends_as_another_user_than_root(file: Path) -> None:
    users = [rest for word, rest in instructions(file) if word == "USER"]
    assert users == ["10001"]
    words = [word for word, _ in instructions(file)]
    assert words[words.index("USER") :] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]


def test_torch_is_not_asked_for(file: Path) -> None:
    extras = set(arguments(file).get("EXTRAS", "").split(",")) - {""}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert not extras & WITH_TORCH
    if file.name != "jetson.Dockerfile":
        assert "find_spec('torch')" in file.read_text()


def test_pip_leaves_no_cache_and_follows_the_constraints(file: Path) -> None:
    *_, (_, install) = [pair for pair in instructions(file) if pair[0] == "RUN"]
    assert "--no-cache-dir --constraint /tmp/constraints.txt" in install
    for _, script in (pair for pair in instructions(file) if pair[0] == "RUN"):
        assert script.count("pip install") + script.count("pip wheel") == script.count(
            "--no-cache-dir"
        )


def test_what_the_wheel_is_made_of_reaches_the_build(file: Path) -> None:
    """``.dockerignore`` lets through what pyproject.toml names, and the constraints."""
    copied = [rest.split()[0] for word, rest in instructions(file) if word == "COPY"]
    assert copied == [".", "constraints.txt"]
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert all((ROOT / name).exists() for name in kept)
    assert kept == {
        *("mimiq_deploy", "calib", "export", "runtime"),
        *("pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]),
    }


def test_the_program_is_what_runs(file: Path) -> None:
    found = dict(instructions(file))
    (program,) = shlex.split(found["ENTRYPOINT"].strip("[]"))
    assert program in PROJECT["scripts"]
