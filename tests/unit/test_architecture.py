"""The rules of the house: imports go one way, the command line starts light, and every setting is read by something."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import inward
from inward.config import EngineKind, JudgeSettings, PromptSource
from inward.config.base import kinds_of
from inward.engines.load import ENGINES
from inward.functions import named
from inward.judging.make import JUDGES
from inward.prompts.load import SOURCES

PACKAGE = Path(inward.__file__).parent
ROOMS = ("prompts", "sampling", "judging", "pairing", "training", "evaluation", "trust", "serving")  # in the order of the flow
SHARED = {
    "records",
    "errors",
    "config",
    "thought",
    "models",
    "storage",
    "hardware",
    "statistics",
    "engines",
    "functions",
    "store",
}  # what any room may import
NAMED = [*ENGINES.values(), *(f"{module}:{name}" for module in JUDGES.values() for name in ("load", "check"))]
HEAVY = {"torch", "transformers", "pandas", "datasets", "plotly"}


def imported(source: str) -> set[str]:
    """Return the modules of `inward` that a source imports anywhere, functions included, without the leading `inward.`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            names |= {f"inward.{alias.name}" for alias in node.names} if node.module == "inward" else {node.module or ""}
    return {name.removeprefix("inward.") for name in names if name.startswith("inward.")}


def violations(room: str, source: str) -> set[str]:
    """Return what a module of `room` imports though it must not."""
    allowed = {*SHARED, *ROOMS[: ROOMS.index(room) + 1]}
    return {name for name in imported(source) if name.split(".")[0] not in allowed}


def sources(*parts: str) -> Iterator[Path]:
    return PACKAGE.joinpath(*parts).rglob("*.py")


def test_every_folder_is_a_room_or_sees_everything() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders <= {*ROOMS, "config", "models", "engines", "store", "runs", "execution", "stages", "report", "cli"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_comes_before_it(room: str) -> None:
    found = {str(path.relative_to(PACKAGE)): violations(room, path.read_text(encoding="utf-8")) for path in sources(room)}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_shared_modules_import_no_room() -> None:
    for name in sorted(SHARED):
        for path in (PACKAGE / f"{name}.py", *sources(name)):
            names = imported(path.read_text(encoding="utf-8")) if path.exists() else set()
            assert {other.split(".")[0] for other in names} <= SHARED, path


@pytest.mark.parametrize(
    ("folder", "others"),
    [("runs", {"execution", "stages", "cli"}), ("execution", {"stages", "cli", *ROOMS}), ("stages", {"cli"})],
)
def test_what_carries_the_loop_is_built_in_layers(folder: str, others: set[str]) -> None:
    """`runs` knows no executor, an executor no room: only `stages` joins them."""
    seen = {name.split(".")[0] for path in sources(folder) for name in imported(path.read_text(encoding="utf-8"))}
    assert not seen & others


def test_nothing_but_the_command_line_imports_the_report() -> None:
    readers = {
        path.relative_to(PACKAGE).parts[0]
        for path in sources()
        if any(name.split(".")[0] == "report" for name in imported(path.read_text(encoding="utf-8")))
    }
    assert readers <= {"report", "cli"}


@pytest.mark.parametrize(
    "line",
    [
        "from inward.training.train import train",
        "from inward import loop",
        "import inward.runs.directory",
        "def late():\n    from inward.cli import main",
        "from inward.runs.shards import read_shard",
    ],
)
def test_the_rule_of_the_rooms_finds_what_breaks_it(line: str) -> None:
    assert violations("pairing", line)
    assert not violations("pairing", "from inward.judging.judge import Judge\nfrom inward import records\nimport json")


def test_the_command_line_starts_without_a_heavy_package() -> None:
    code = f"import sys, inward.cli.main; print(*sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_every_kind_that_a_recipe_can_name_is_in_its_table_and_nothing_else_is() -> None:
    assert set(JUDGES) == set(kinds_of(JudgeSettings))
    assert set(SOURCES) == set(kinds_of(PromptSource))
    assert set(ENGINES) == set(get_args(EngineKind))


@pytest.mark.parametrize("reference", NAMED)
def test_what_a_table_names_is_there_and_takes_what_it_is_given(reference: str) -> None:
    parameters = list(inspect.signature(named(reference)).parameters)
    given = {"load_engine": ["model", "base", "dtype", "rows", "trust_remote_code"], "load": ["settings", "rho"]}
    expected = given.get(reference.partition(":")[2], ["settings", "prompts"])
    assert parameters[: len(expected)] == expected


def fields_of(source: str) -> set[str]:
    """Return the fields of all settings classes; `kind` chooses the class, and is read by that alone."""
    return {
        item.target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id != "kind"
    }


def reads(source: str) -> set[str]:
    """Return the attributes a source reads, except inside validators: what is only checked is not yet used."""
    tree = ast.parse(source)
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(mark) for mark in node.decorator_list)
        for inner in ast.walk(node)
    }
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in checking
    }


def test_every_setting_is_read_by_something() -> None:
    fields = set().union(*(fields_of(path.read_text(encoding="utf-8")) for path in sources("config")))
    assert {"rho", "min_gap", "batch_tokens", "rank"} <= fields
    assert fields - set().union(*(reads(path.read_text(encoding="utf-8")) for path in sources())) == set()


def test_a_setting_that_is_only_validated_counts_as_unread() -> None:
    source = """
class Some(Settings):
    used: int = 0
    checked: int = 0
    stored: int = 0

    @model_validator(mode="after")
    def _check(self):
        return self.checked

    def total(self):
        other.stored = 1
        return self.used
"""
    assert fields_of(source) - reads(source) == {"checked", "stored"}
