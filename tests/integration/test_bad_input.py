"""What a user gets wrong, or the machine: one clear message with a remedy, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inward.runs.directory import RunDir
from inward.runs.opening import locked
from inward.runs.progress import Silent
from tests.integration.test_kill import Forks, write_recipe

MODULE = [sys.executable, "-c", "from inward.cli.main import main; main()"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("log") / "log.txt")
    yield forks
    forks.close()


@pytest.fixture
def run(made: Path, server: Forks, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `inward run` with overrides in a process of its own; return its exit code and what it said."""

    def call(*overrides: str, out: Path | None = None) -> tuple[int, str]:
        server.log.write_text("")
        where = out or tmp_path / "run"
        answer = server.run("run", str(made / "recipe.toml"), *overrides, "--out", str(where))
        return answer["code"], server.log.read_text()

    return call


def prompts_file(folder: Path, lines: list[str]) -> str:
    path = folder / "bad.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return f'prompts.sources=[{{ kind = "file", path = "{path}" }}]'


GOOD = [json.dumps({"prompt": f"Say {n}.", "answer": str(n)}) for n in range(12)]

MISTAKES = [
    (["samplng.k=4"], ["unknown key 'samplng'", "did you mean 'sampling'"]),
    (["sampling.k=1"], ["sampling.k", "2"]),
    (["sampling.k=many"], ["sampling.k", "integer"]),
    (["training.nll_weight=1.0"], ["training.nll_weight", "training.objective"]),
    (["thought.scaffold.budget=24"], ["thought.scaffold.budget", "sampling.max_new_tokens"]),
    (["model.path=./nowhere"], ["nowhere"]),
    (["prompts.per_iteration=100"], ["92", "missing", "prompts.per_iteration"]),
    (["prompts.max_tokens=5"], ["5", "prompts.max_tokens"]),
    (["sampling.max_new_tokens=5000"], ["sampling.max_new_tokens"]),
    (["training.response_weight=0.0"], ["training.response_weight", "arms"]),
    (["training.trackers=['mlflow']"], ["pip install 'inward[mlflow]'"]),
]


@pytest.mark.parametrize(("overrides", "said"), MISTAKES, ids=[mistake[0][0] for mistake in MISTAKES])
def test_a_mistake_in_the_recipe(run: Callable[..., tuple[int, str]], overrides: list[str], said: list[str]) -> None:
    code, text = run(*overrides)
    assert code == 2, text
    assert "Traceback" not in text
    assert all(part in text for part in said), text


BAD_FILES = [
    ([*GOOD[:3], '{"prompt": "cut', *GOOD[3:]], "bad.jsonl", "4"),
    ([*GOOD[:2], json.dumps({"prompt": "  "}), *GOOD[2:]], "empty", "3"),
    ([*GOOD, GOOD[4]], "repeats", "13"),
]


@pytest.mark.parametrize(("lines", "word", "number"), BAD_FILES, ids=["broken line", "empty", "duplicate"])
def test_a_bad_prompt_file(
    run: Callable[..., tuple[int, str]], tmp_path: Path, lines: list[str], word: str, number: str
) -> None:
    code, text = run(prompts_file(tmp_path, lines))
    assert code == 2, text
    assert "Traceback" not in text
    assert word in text, text
    assert number in text, text


def test_a_folder_with_something_else_is_left_alone(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    code, text = run(out=tmp_path / "thesis")
    assert code == 2
    assert "--out" in text
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_another_recipes_run_is_refused_and_more_iterations_are_not(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert run("arms=['direct']")[0] == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    code, text = run("arms=['direct']", "training.beta=0.5")
    assert code == 2
    assert "training.beta: 0.1 there, 0.5 now" in text
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    code, text = run("arms=['direct']", "iterations=2", "prompts.per_iteration=6", "prompts.validation=4")
    assert code == 2, "twelve prompts are too few for a second iteration"
    assert "4 prompts are missing" in text


def test_a_judge_that_scores_nothing(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"Say {n}."}) for n in range(12)]
    code, text = run(prompts_file(tmp_path, lines))
    assert code == 1, text
    assert "Traceback" not in text
    assert "neither constraints nor answers" in text or "nothing" in text, text


def test_a_run_in_use_is_refused(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    with locked(RunDir(tmp_path / "run"), Silent()):
        code, text = run()
    assert code == 2
    assert "another process" in text


def test_a_folder_that_cannot_be_written(run: Callable[..., tuple[int, str]]) -> None:
    code, text = run(out=Path("/proc/inward"))
    assert code in (1, 2)
    assert "Traceback" not in text, text
    assert "/proc/inward" in text


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(made: Path, tmp_path: Path) -> None:
    """A real, small file system fills up; with more room the same command finishes."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        command = [*MODULE, "run", str(made / "recipe.toml"), "--out", str(small / "run")]
        full = subprocess.run(command, capture_output=True, text=True, check=False)
        assert full.returncode == 1, full.stderr
        assert "Traceback" not in full.stderr, full.stderr
        assert "disk is full" in full.stderr or "No space left" in full.stderr, full.stderr
        kept = {path: path.read_bytes() for path in (small / "run").rglob("part-*.parquet")}
        assert kept
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert all(path.read_bytes() == content for path, content in kept.items())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(made: Path, tmp_path: Path) -> None:
    command = [*MODULE, "run", str(made / "recipe.toml"), "--out", str(tmp_path / "run"), "execution.isolate=true"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's tests inherit it ignored
    )
    while not list(tmp_path.glob("run/*/iter_000/validation")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "to go on" in said
    assert "inward run" in said
    assert "Traceback" not in said, said


def test_a_file_size_limit_is_named(tmp_path: Path) -> None:
    from inward.errors import StorageError
    from inward.storage import write_bytes

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="ulimit"):
            write_bytes(tmp_path / "large", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
