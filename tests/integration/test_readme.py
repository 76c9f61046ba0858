"""The README's commands, run for real on a tiny run in place of the demo's, and its recipe, parsed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from inward.config import load_recipe, parse_recipe
from tests.integration.test_kill import Forks, write_recipe

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
INLINE = re.findall(r"`(inward [^`]+)`", README)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    folder = tmp_path_factory.mktemp("readme")
    recipe = write_recipe(folder)
    forks = Forks(folder / "log.txt")
    run = str(folder / "runs" / "demo")
    assert forks.run("run", str(recipe), "--out", run, "iterations=1") == {"code": 0}, forks.log.read_text()
    yield folder, forks
    forks.close()


def filled(command: str, folder: Path) -> list[str]:
    """Put what exists here in the place of what exists after the demo."""
    from inward.runs.directory import RunDir

    run = RunDir(folder / "runs" / "demo")
    (shard,) = (run.iteration("thinking", 1) / "prompts").glob("*.parquet")
    from inward.records import Prompt
    from inward.runs.shards import read_shard

    stand_ins = {
        "RUN": str(run.root),
        "ID": read_shard(shard, Prompt)[0].id,
        "ifeval.jsonl": str(folder / "prompts.jsonl"),
    }
    words = [stand_ins.get(word, word) for word in shlex.split(command)]
    return [re.sub("^runs/demo", str(run.root), word).replace("iter_002", "iter_001") for word in words]


def test_the_readme_names_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    recipe = parse_recipe(tomllib.loads(block))
    assert recipe.training.objective == "irpo"
    path = tmp_path / "my-recipe.toml"
    path.write_text(block)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:3] == ["inward", "run", "my-recipe.toml"]:
            overrides = [word for word in words[3:] if "=" in word]
            load_recipe(path, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("inward ") and "my-recipe" not in c])
def test_a_command_of_the_readme_works(command: str, place: tuple[Path, Forks]) -> None:
    folder, forks = place
    forks.log.write_text("")
    words = filled(command, folder)
    assert forks.run(*words[1:]) == {"code": 0}, forks.log.read_text()
    if "--json" in words:
        json.loads(forks.log.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in INLINE if " RUN" in c])
def test_a_command_named_in_the_text_works(command: str, place: tuple[Path, Forks], tmp_path: Path) -> None:
    folder, forks = place
    forks.log.write_text("")
    words = [str(tmp_path / word) if word in ("FILE", "FOLDER") else word for word in filled(command, folder)]
    assert forks.run(*words[1:]) == {"code": 0}, forks.log.read_text()
