"""The documents: what they name is there, and what they show runs."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

import inward
from benchmarks.memory_table import markdown, reckon
from inward.cli.main import app
from inward.config import Recipe, TrainingSettings, parse_recipe
from inward.config.objectives import OBJECTIVES, Objective
from inward.engines.engine import Engine
from inward.engines.load import ENGINES, load_engine
from inward.errors import UsageError
from inward.judging.judge import Group
from inward.judging.make import make_judge
from inward.prompts import load_prompts
from inward.runs.place import Place
from inward.runs.progress import Silent, tracked
from inward.storage import read_json, write_json
from inward.training.loss import Sums
from inward.training.objective import losses
from tests.build import prompt
from tests.contract import test_architectures as architectures
from tests.contract import test_engines as contract
from tests.unit.test_objectives import drawn

ROOT = Path(__file__).parents[2]
PACKAGE = Path(inward.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GLOSSARY = ROOT / "docs" / "glossary.md"
HOW_TO = ROOT / "docs" / "how-to"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)\)")
NAMED_LINK = re.compile(r"\[`([\w.]+)`\]\(([^)\s]+)\)")
ENTRY = re.compile(r"^- \*\*(.+?)\*\*(?: \([\w -]+\))?: (.+?)(?=\n- |\n\n|\Z)", flags=re.MULTILINE | re.DOTALL)
MENTIONED = re.compile(r"`([\w./-]+/[\w-]+\.py)`")


@cache
def definitions(path: Path) -> frozenset[str]:
    """Return what a module defines: its own names, and the members of its classes as `Class.member`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {name for node in tree.body for name in names_of(node)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    members = {f"{owner.name}.{name}" for owner in classes for item in owner.body for name in names_of(item)}
    return frozenset(own | members)


def names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def entries() -> dict[str, str]:
    return {word: " ".join(text.split()) for word, text in ENTRY.findall(GLOSSARY.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_and_mentions_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = [target.partition("#")[0] for _, target in LINK.findall(text) if "://" not in target]
    missing = [target for target in linked if target and not (page.parent / target).exists()]
    missing += [path for path in MENTIONED.findall(text) if not any((base / path).exists() for base in (ROOT, PACKAGE))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_name_that_a_page_links_to_is_defined_in_that_file(page: Path) -> None:
    links = [(name, page.parent / target) for name, target in NAMED_LINK.findall(page.read_text(encoding="utf-8"))]
    missing = [(name, path.name) for name, path in links if name != path.name and name not in definitions(path)]
    assert missing == []


def test_every_entry_of_the_glossary_is_a_sentence_with_a_link() -> None:
    assert len(entries()) > 80
    for word, text in entries().items():
        sentence, _, links = text.partition(" (")
        assert sentence[0].isupper(), word
        assert "." in sentence, word
        assert NAMED_LINK.search(links), f"{word} has no link to the file that defines it"


def test_every_record_and_every_seam_stands_in_the_glossary() -> None:
    records = {name for name in definitions(PACKAGE / "records.py") if name[0].isupper() and "." not in name}
    seams = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    }
    assert {"Prompt", "Evaluation"} <= records
    assert {"Judge", "Engine", "Executor"} <= seams
    aliases = {"Finish", "PairKind"}  # the values of one field each
    linked = {name for name, _ in NAMED_LINK.findall(GLOSSARY.read_text(encoding="utf-8"))}
    assert records - aliases - linked == set()
    assert seams - linked == set()


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in `docs/how-to`, or of the README."""
    path = ROOT / page if page == "README.md" else HOW_TO / page
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def write_files(page: str, folder: Path) -> None:
    """Write the Python blocks of a page that begin with a file's name to files of that name."""
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)$", block, flags=re.MULTILINE):
            (folder / name[1]).write_text(block, encoding="utf-8")


def import_file(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run the block of a page that is a file of `src/inward`, as the module that it would be there."""
    (block,) = (block for block in blocks(page, "python") if block.startswith("# src/inward/"))
    path = block.splitlines()[0].removeprefix("# src/").removesuffix(".py")
    name = path.replace("/", ".")
    file = folder / f"{path.rpartition('/')[2]}.py"
    file.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def recipe_with(block: str) -> Recipe:
    """Return a minimal recipe with the tables of a block in it."""
    tree: dict[str, Any] = {
        "model": {"path": "smollm2"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
        "judge": {"kind": "verifiable"},
    }
    for key, value in tomllib.loads(block).items():
        merge = isinstance(value, dict) and key != "judge"
        tree[key] = tree.get(key, {}) | value if merge else value
    return parse_recipe(tree)


TOML = [(page.name, block) for page in sorted(HOW_TO.glob("*.md")) for block in blocks(page.name, "toml")]


@pytest.mark.parametrize(("page", "block"), [case for case in TOML if case[0] != "new-objective.md"])
def test_a_piece_of_a_recipe_parses(page: str, block: str) -> None:
    assert recipe_with(block) != recipe_with("")


def test_every_how_to_names_its_files_and_its_tests() -> None:
    pages = sorted(HOW_TO.glob("*.md"))
    assert {page.stem for page in pages} >= {"own-model", "own-judge", "own-prompts", "new-engine", "new-objective", "resume"}
    for page in pages:
        targets = [target for _, target in LINK.findall(page.read_text(encoding="utf-8"))]
        assert any("/src/inward/" in target for target in targets), page
        assert any("/tests/" in target for target in targets), page


def test_the_judge_of_the_page_scores_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("own-judge.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("own-judge.md", "toml")
    judge = make_judge(recipe_with(block).judge)
    asked = prompt("Where does the Rhine end?", answers=("the North Sea",))
    right, wrong, blank = judge.judge([Group(prompt=asked, responses=("In the North Sea.", "In Bonn.", " "))])[0]
    assert right.value == pytest.approx(0.8 + 0.2 * (1 - 4 / 200))
    assert wrong.value == pytest.approx(0.2 * (1 - 2 / 200))
    assert (blank.value, blank.unscored) == (None, "a blank response")
    assert judge.name.startswith("python(my_judge.py:score@")


def test_the_prompts_of_the_page_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("own-prompts.md", tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "Name a river."}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    file, function = (load_prompts(recipe_with(block).prompts).prompts for block in blocks("own-prompts.md", "toml"))
    assert [one.text for one in file] == ["Name a river."]
    assert len(function) == 4000
    assert (function[0].text, function[0].answers) == ("What is 2 times 2?", ("4",))
    assert {one.source for one in function} == {"my_prompts.py:sums"}


CONTRACT = (
    contract.test_completions_come_in_the_order_of_requests_and_indices,
    contract.test_nothing_asked_nothing_drawn,
    contract.test_the_same_seed_gives_the_same_completions_and_another_seed_others,
    contract.test_samples_of_one_request_differ,
    contract.test_a_completion_does_not_depend_on_the_other_requests,
    contract.test_fewer_samples_are_the_first_of_more,
    contract.test_a_completion_ends_with_its_end_token_or_at_the_limit,
    contract.test_log_probabilities_come_where_they_are_asked_for_or_the_engine_says_that_it_has_none,
    contract.test_progress_counts_every_completion_and_every_drawn_token_once,
    contract.test_the_scaffold_writes_both_markers_and_bounds_the_thought,
    contract.test_without_an_opening_the_thought_starts_at_once,
    contract.test_a_prompt_that_does_not_fit_is_named,
    contract.test_a_scaffold_without_room_for_a_response_is_refused,
    contract.test_the_same_prompt_twice_is_refused,
    contract.test_encode_tells_turns_and_contents_apart,
)


@pytest.mark.parametrize("law", CONTRACT, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_engine_of_the_page_keeps_the_contract(
    law: Callable[[Engine], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (HOW_TO / "new-engine.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'`"(\w+)": "([\w.:]+)"`', page)
    import_file("new-engine.md", tmp_path, monkeypatch)
    monkeypatch.setitem(ENGINES, *line)
    law(load_engine(tmp_path, line[0]))


def test_the_reader_of_progress_shows_every_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("resume.md", "python")
    monkeypatch.setattr(sys, "argv", ["how_far.py", str(tmp_path)])

    def shown() -> str:
        exec(block, {})
        return capsys.readouterr().out.strip()

    with tracked(tmp_path / "progress.json", Silent()) as reporter:
        reporter.begin(Place(arm="thinking", iteration=1, stage="outputs"), 320, "outputs")
        assert shown() == "thinking iteration 1, outputs: 0 of 320 outputs, None s left"
        stale = read_json(tmp_path / "progress.json") | {"updated": 0.0}
        write_json(tmp_path / "progress.json", stale)
        assert "no news" in shown()
    assert shown() == "finished"


COMMANDS = sorted(
    {
        (page.name, line.strip().removeprefix("$ "))
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(\$ )?inward [a-z]", line)
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_a_page_has_the_options_that_it_uses(page: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True)[1:] if word != "..."]
    command_or_group: Any = typer.main.get_command(app)
    while hasattr(command_or_group, "commands"):
        command_or_group = command_or_group.commands[words.pop(0)]
    options = {option for parameter in command_or_group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options


def walked() -> dict[str, tuple[int, int]]:
    """Return for each task of the table in docs/design.md how many files, and lines of them, its list below names."""
    section = DESIGN.partition("## Files opened, lines read\n")[2].partition("\n## ")[0]
    walks = {}
    for task, text in re.findall(r"^- \*\*(.+?)\*\*(?: \(.+?\))?: (.+?)(?=\n- |\Z)", section, flags=re.MULTILINE | re.DOTALL):
        files = re.findall(r"((?:`[\w.]+`(?:,| and|, and)?\s+)*)(of\s+)?`([\w/]+\.py)`", text)
        counts = [count_lines(path, re.findall(r"`([\w.]+)`", names) if of else []) for names, of, path in files]
        walks[task] = len(counts), sum(counts)
    return walks


def count_lines(path: str, names: list[str]) -> int:
    """Return the lines of a whole module, or of some of its definitions."""
    file = next(base / path for base in (PACKAGE, ROOT) if (base / path).exists())
    text = file.read_text(encoding="utf-8")
    top = ast.parse(text).body
    members = [item for owner in top if isinstance(owner, ast.ClassDef) for item in owner.body]
    parts = [name.rpartition(".") for name in names]
    nodes = [node for owner, _, name in parts for node in (members if owner else top) if name in names_of(node)]
    assert len(nodes) == len(names), f"{path} does not define each of {names} once"
    return sum((node.end_lineno or 0) - node.lineno + 1 for node in nodes) if names else len(text.splitlines())


def test_no_task_takes_more_than_five_files_or_six_hundred_lines() -> None:
    assert len(walked()) == 8
    for task, (files, lines) in walked().items():
        assert files <= 5, task
        assert lines <= 600, task


def test_the_table_of_files_and_lines_says_what_its_list_names() -> None:
    table = dict(re.findall(r"^\| ([\w ]+?) \| [\d, /]+ \| ([\d, /]+?) \|$", DESIGN, flags=re.MULTILINE))
    assert table.keys() == walked().keys()
    for task, (files, lines) in walked().items():
        stated = [int(number.replace(",", "")) for number in table[task].split("/")]
        assert stated[0] == files, task
        assert sum(stated[1:]) == pytest.approx(lines, rel=0.1), task


def test_the_objective_of_the_page_is_registered_and_keeps_its_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line, law, *_ = blocks("new-objective.md", "python")
    (name, objective), *_ = eval(f"{{{line}}}", {"Objective": Objective}).items()
    import_file("new-objective.md", tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="'robust' is not an objective"):
        recipe_with(blocks("new-objective.md", "toml")[0])
    monkeypatch.setitem(OBJECTIVES, name, objective)
    assert recipe_with(blocks("new-objective.md", "toml")[0]).training.label_smoothing == 0.1
    with pytest.raises(UsageError, match=r"training\.gamma"):
        recipe_with('[training]\nobjective = "robust"\ngamma = 1.0')
    names = {"torch": torch, "TrainingSettings": TrainingSettings, "losses": losses, "sums": drawn(), "swapped": swapped}
    exec(law, names)
    names[law.split("(")[0].removeprefix("def ")]()


def swapped(sums: Sums) -> Sums:
    """Return the sums of the same pairs with the other label."""
    return replace(
        sums,
        policy_chosen_B=sums.policy_rejected_B,
        policy_rejected_B=sums.policy_chosen_B,
        ref_chosen_B=sums.ref_rejected_B,
        ref_rejected_B=sums.ref_chosen_B,
        chosen_tokens_B=sums.rejected_tokens_B,
        rejected_tokens_B=sums.chosen_tokens_B,
    )


def test_the_table_of_memory_is_what_the_benchmark_reckons() -> None:
    assert markdown(reckon(4096)) in (HOW_TO / "own-model.md").read_text(encoding="utf-8")


def families() -> dict[tuple[str, str], set[str]]:
    """Return the families of the contract test by how they are sampled and trained."""
    decided = dict.fromkeys(architectures.SHARED.split(), ("shared", "packed"))
    decided |= dict.fromkeys(architectures.PADDED.split(), ("padded", "padded"))
    decided |= {name: (sampled, trained or "either") for name, (sampled, trained) in architectures.OTHERWISE.items()}
    ways: dict[tuple[str, str], set[str]] = {}
    for name, way in decided.items():
        ways.setdefault(way, set()).add(name)
    return ways


def test_the_table_of_architectures_is_that_of_the_contract() -> None:
    page = (HOW_TO / "own-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (shared|padded|refused) \| (\w+) \| (.+?) \|$", page, flags=re.MULTILINE)
    assert {(sampled, trained): set(names.split(", ")) for sampled, trained, names in rows} == families()
