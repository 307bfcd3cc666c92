"""Every command that the documentation shows is one that the command line takes.

Only parsed, never run: an option, a value or an argument that does not exist fails, and so do
batch sizes that ``build`` would refuse.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from mimiq_deploy.cli import cli
from mimiq_runtime.engine_record import BuildOptions
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.trt_build import check_options

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# At the start of a line: of a shell, of a step in CI, or of a diagram, which has none.
_COMMAND = re.compile(
    r"""^ *(?:\$ |- |(?:- )?run: |(?P<quote>sh "))?(?P<line>mimiq-deploy [a-z].*?)(?(quote)"|)$""",
    re.MULTILINE,
)


def shown_commands(text: str, *, is_script: bool) -> Iterator[list[str]]:
    """The words of each command in a script, or in the code blocks of a page."""
    blocks = [text] if is_script else _BLOCK.findall(text)
    for block in blocks:
        for found in _COMMAND.finditer(block.replace("\\\n", " ")):
            yield words_of(found["line"])


def words_of(line: str) -> list[str]:
    """Up to the end of the command: an operator of the shell, or a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            break
        # The reader's own options, which a script passes on.
        if word == "$@":
            continue
        # What the reader gave before.
        words.append("MODEL" if word == "..." else word)
    return words


def parse(words: list[str]) -> None:
    """Parse, as ``mimiq-deploy`` does before it runs anything.

    Raises:
        click.UsageError: The command line does not take it.
        InvalidInputError: ``build`` would refuse its batch sizes.
    """
    _, name, *arguments = words
    with click.Context(cli) as outer:
        command = cli.get_command(outer, name)
        if command is None:
            raise click.UsageError(f"no command {name}")
        context = command.make_context(name, arguments, parent=outer)
    if name == "build":
        sizes = {key: context.params[key] for key in ("min_batch", "opt_batch", "max_batch")}
        check_options(
            BuildOptions(**{key: size for key, size in sizes.items() if size is not None})
        )


def sources() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "examples", "benchmarks"):
        pages += [path for kind in ("*.md", "*.sh") for path in (ROOT / folder).rglob(kind)]
    return sorted(pages)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_shown_is_understood(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    faults = []
    for words in shown_commands(text, is_script=path.suffix == ".sh"):
        try:
            parse(words)
        except (click.UsageError, InvalidInputError) as error:
            faults.append(f"{shlex.join(words)}: {error}")
    assert faults == []


def test_the_scan_finds_commands() -> None:
    found = [
        words[1]
        for path in sources()
        for words in shown_commands(
            path.read_text(encoding="utf-8"), is_script=path.suffix == ".sh"
        )
    ]
    assert len(found) > 40
    assert {"calibrate", "export", "build", "validate", "bench", "predict", "report"} <= set(found)


PAGE = """
Text with mimiq-deploy build --nonsense outside of a block.

```
mimiq-deploy validate run \\
    --engine ort-cpu   # a comment
    - mimiq-deploy bench run --gates gates.yaml || true
 |  mimiq-deploy validate | bench          |
```
"""


def test_a_page_is_read_as_a_shell_reads_it() -> None:
    assert list(shown_commands(PAGE, is_script=False)) == [
        ["mimiq-deploy", "validate", "run", "--engine", "ort-cpu"],
        ["mimiq-deploy", "bench", "run", "--gates", "gates.yaml"],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "mimiq-deploy assemble run",
        "mimiq-deploy build run --engines trt",
        "mimiq-deploy build run --engine ort-cpu",
        "mimiq-deploy validate run --engine tensorrt",
        "mimiq-deploy build",
        "mimiq-deploy build run --max-batch 4 --opt-batch 8",
    ],
)
def test_what_is_not_understood_would_be_seen(line: str) -> None:
    with pytest.raises((click.UsageError, InvalidInputError)):
        parse(words_of(line))


def test_every_benchmark_is_in_the_list() -> None:
    folder = ROOT / "benchmarks"
    page = (folder / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in folder.iterdir() if path.suffix in {".py", ".sh"}}
    assert set(re.findall(r"`(\w+\.(?:py|sh))`", page)) == scripts
