"""The shape of the repository: the wheel, the arrows between packages, the documentation."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mimiq_calib.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "mimiq_deploy": ROOT / "mimiq_deploy",
    "mimiq_calib": ROOT / "calib" / "mimiq_calib",
    "mimiq_export": ROOT / "export" / "mimiq_export",
    "mimiq_runtime": ROOT / "runtime" / "mimiq_runtime",
}

FORBIDDEN = {
    "mimiq_calib": {"mimiq_export", "mimiq_deploy", "onnx", "onnx_ir", "onnxscript", "onnxruntime"},
    "mimiq_export": {"mimiq_deploy", "onnxruntime"},
    "mimiq_runtime": {
        *("mimiq_calib", "mimiq_export", "mimiq_deploy"),
        *("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript"),
    },
}
"""What a package may not import, not even inside a function or for annotations."""

EVERYWHERE_FORBIDDEN = {"calib", "export", "runtime", "pickle"}

DATA = {
    "mimiq_deploy/README.md",
    "mimiq_deploy/demo/digits_vit.json",
    "mimiq_deploy/demo/digits_vit.safetensors",
    *(f"mimiq_deploy/recipes/{name}.yaml" for name in ("balanced", "demo", "paper", "quick")),
    *(
        f"mimiq_runtime/report/templates/{name}"
        for name in ("page.css", "page.html.j2", "parts.html.j2")
    ),
    *(f"{package}/py.typed" for package in PACKAGES),
}
"""Everything in the wheel that is no module."""


def modules_of(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all imports of a file, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield (node.module or "").partition(".")[0]


def project_files() -> list[Path]:
    """What git knows or would add; the rest is nobody's business."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def pages() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".md"]


@pytest.fixture(scope="module")
def wheel_content(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


class TestWheel:
    def test_it_holds_the_four_packages_and_nothing_else(self, wheel_content: set[str]) -> None:
        modules = {
            f"{package}/{path.relative_to(folder).as_posix()}"
            for package, folder in PACKAGES.items()
            for path in modules_of(package)
        }
        content = {name for name in wheel_content if ".dist-info/" not in name}
        assert content == modules | DATA

    def test_its_metadata_has_the_command_and_the_licence(self, wheel_content: set[str]) -> None:
        metadata = {
            name.partition(".dist-info/")[2] for name in wheel_content if ".dist-info/" in name
        }
        expected = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        assert metadata == expected


class TestArrows:
    @pytest.mark.parametrize("package", FORBIDDEN)
    def test_a_package_imports_nothing_that_it_may_not(self, package: str) -> None:
        wrong = {
            str(path.relative_to(ROOT)): found
            for path in modules_of(package)
            if (found := FORBIDDEN[package] & set(imported(path)))
        }
        assert wrong == {}

    @pytest.mark.parametrize("package", PACKAGES)
    def test_no_package_imports_a_folder_or_pickle(self, package: str) -> None:
        wrong = {
            str(path.relative_to(ROOT)): found
            for path in modules_of(package)
            if (found := EVERYWHERE_FORBIDDEN & set(imported(path)))
        }
        assert wrong == {}

    def test_the_scan_sees_imports_inside_functions(self) -> None:
        names = set(imported(PACKAGES["mimiq_deploy"] / "calibration.py"))
        assert {"torch", "mimiq_calib", "mimiq_runtime"} <= names


class TestModules:
    def test_none_is_called_utils(self) -> None:
        names = {path.stem for package in PACKAGES for path in modules_of(package)}
        assert not names & {"utils", "util", "helpers", "misc", "common"}

    @pytest.mark.parametrize("package", ["mimiq_calib", "mimiq_export", "mimiq_runtime"])
    def test_the_libraries_say_what_is_public(self, package: str) -> None:
        silent = [
            str(path.relative_to(ROOT))
            for path in modules_of(package)
            if path.name != "__init__.py" and not _public_names(path)
        ]
        assert silent == []

    @pytest.mark.parametrize("package", PACKAGES)
    def test_what_is_public_exists(self, package: str) -> None:
        for path in modules_of(package):
            missing = _public_names(path) - _defined_names(path)
            assert not missing, f"{path.relative_to(ROOT)}: {missing}"

    @pytest.mark.parametrize("package", PACKAGES)
    def test_every_module_has_a_docstring(self, package: str) -> None:
        for path in modules_of(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), path.relative_to(ROOT)


class TestDocumentation:
    def test_every_internal_link_leads_somewhere(self) -> None:
        broken = [
            f"{page.relative_to(ROOT)}: {link}"
            for page in pages()
            for link in _links(page)
            if not _leads_somewhere(page, link)
        ]
        assert broken == []

    def test_a_broken_link_would_be_seen(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("# A page\n\n[a](page.md#a-page) [b](none.md) [c](#none)\n")
        assert [_leads_somewhere(page, link) for link in _links(page)] == [True, False, False]

    def test_every_decision_has_a_number_a_title_and_a_status(self) -> None:
        decisions = sorted((ROOT / "docs" / "decisions").iterdir())
        numbers = [path.name.partition("-")[0] for path in decisions]
        assert numbers == [f"{number:04d}" for number in range(1, len(decisions) + 1)]
        for path in decisions:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert lines[0].startswith("# "), path.name
            status = [line for line in lines if line.startswith("Status: ")]
            assert len(status) == 1, path.name
            assert re.match(r"Status: (accepted|proposed|superseded by \d{4})\.", status[0])

    def test_what_the_code_refers_to_exists(self) -> None:
        for package in PACKAGES:
            for path in modules_of(package):
                for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                    assert (ROOT / page).is_file(), f"{path.relative_to(ROOT)}: {page}"

    def test_the_maps_name_every_module(self) -> None:
        for package, folder in PACKAGES.items():
            page = folder if package == "mimiq_deploy" else folder.parent
            text = (page / "README.md").read_text(encoding="utf-8")
            for path in modules_of(package):
                # What is below demo/ is described as a whole.
                if path.name.startswith("__") or path.parent.name == "demo":
                    continue
                assert path.name in text, f"{page.name}/README.md lacks {path.name}"

    @pytest.mark.parametrize("package", PACKAGES)
    def test_the_maps_name_no_module_that_is_gone(self, package: str) -> None:
        folder = PACKAGES[package]
        page = folder if package == "mimiq_deploy" else folder.parent
        map_ = (page / "README.md").read_text(encoding="utf-8").split("```")[1]
        assert set(re.findall(r"\w+\.py", map_)) <= {path.name for path in modules_of(package)}

    def test_the_table_of_recipe_keys_is_complete_and_has_the_right_defaults(self) -> None:
        page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
        section = page.partition("\n## 8 Recipe keys\n")[2].partition("\n## ")[0]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "| `" in line]
        table = {row[0].strip("`"): row[-1].strip("`") for row in rows}
        assert table == dict(_recipe_keys(Recipe))


def test_the_oldest_versions_are_those_that_are_promised() -> None:
    """constraints-lowest.txt pins each lower bound of what installs without a GPU."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    names = everything.partition("[")[2].rstrip("]").split(",")
    promised = [*project["dependencies"], *(each for name in names for each in extras[name])]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == {
        each.replace(">=", "==") for each in promised if not each.startswith("mimiq-deploy")
    }


def test_no_file_names_a_machines_folders() -> None:
    # Put together, so that this file does not hold what it looks for.
    folders = ["/" + name + "/" for name in ("work", "root", "home")] + [
        "/tmp/" + "bash",
        "/tmp/" + "dev",
    ]
    pattern = re.compile(r"(?<![\w.])(?:" + "|".join(folders).replace("/", "[/]") + ")")
    assert pattern.search("x = '" + "/".join(["", "root", "x'"]))
    found = []
    for path in project_files():
        if path.suffix in {".safetensors", ".png", ".onnx"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def _public_names(path: Path) -> set[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id == "__all__":
                return set(ast.literal_eval(node.value))
    return set()


def _defined_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _recipe_keys(model: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and default, as JSON or the word required."""
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _recipe_keys(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, "required" if field.is_required() else json.dumps(default)


def _links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^()\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
