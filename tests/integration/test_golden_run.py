"""A golden run: a small recipe of both arms, file by file as it was when this was last agreed on.

    python -m tests.integration.test_golden_run    # stores it anew, after a change that is meant to alter what is stored

A refactoring leaves it as it is. What is discrete (names, texts, tokens, choices, settings) must be the same to the byte;
numbers may differ by the rounding of another processor.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.integration.test_kill import Forks, contents, write_recipe

GOLDEN = Path(__file__).parent.parent / "golden" / "run_tiny.json"
IGNORED = ("provenance.json", "progress.json")
"""Files about the machine and the moment."""


def sketch(root: Path, inputs: Path) -> dict[str, dict[str, Any]]:
    """Return for every file of a run the digest of what is discrete in it, and its numbers."""
    sketches = {}
    for name, content in contents(root).items():
        if name.rpartition("/")[2] in IGNORED:
            continue
        numbers: list[float] = []
        tree = _discrete(_tree(root / name, content), numbers)
        text = json.dumps(tree, sort_keys=True).replace(str(inputs), "INPUTS").replace(str(root), "ROOT")
        sketches[name] = {
            "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
            "numbers": [float(f"{number:.6g}") for number in numbers[:12]],
            "sum": float(f"{math.fsum(map(abs, numbers)):.6g}"),
        }
    return sketches


def _tree(path: Path, content: Any) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: float(tensor.double().abs().mean()) for name, tensor in load_file(path).items()}
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else content


def _discrete(tree: Any, numbers: list[float]) -> Any:
    """Return a tree without its floating-point numbers, which go into `numbers` in their order."""
    if isinstance(tree, float):
        numbers.append(tree)
        return None
    if isinstance(tree, dict):
        return {str(key): _discrete(value, numbers) for key, value in sorted(tree.items())}
    if isinstance(tree, list | tuple):
        return [_discrete(value, numbers) for value in tree]
    return tree


def made(folder: Path) -> dict[str, dict[str, Any]]:
    """Run the recipe and return its sketch."""
    recipe, forks = write_recipe(folder), Forks(folder / "log.txt")
    try:
        assert forks.run("run", str(recipe), "--out", str(folder / "run")) == {"code": 0}, forks.log.read_text()
    finally:
        forks.close()
    return sketch(folder / "run", folder)


@pytest.mark.slow
def test_a_run_stores_what_it_stored_before(tmp_path: Path) -> None:
    golden, now = json.loads(GOLDEN.read_text()), made(tmp_path)
    assert sorted(now) == sorted(golden)
    for name, stored in golden.items():
        assert now[name]["digest"] == stored["digest"], f"{name} holds something else"
        assert now[name]["numbers"] == pytest.approx(stored["numbers"], rel=1e-3, abs=1e-4), name
        assert now[name]["sum"] == pytest.approx(stored["sum"], rel=1e-3, abs=1e-4), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        GOLDEN.write_text(json.dumps(made(Path(name)), indent=1, sort_keys=True) + "\n")
