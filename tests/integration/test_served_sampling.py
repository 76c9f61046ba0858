"""A whole run whose outputs are drawn at servers, which take the weights of every iteration from the run's own folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inward.records import Output
from inward.runs.directory import RunDir
from inward.runs.shards import read_stage
from tests.completions_server import completions_server
from tests.integration.test_kill import Forks, contents, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    folder = tmp_path_factory.mktemp("served")
    recipe = write_recipe(folder)
    forks = Forks(folder / "log.txt")
    yield recipe, forks
    forks.close()


def served(*urls: str) -> list[str]:
    addresses = ", ".join(f'"{url}"' for url in urls)
    endpoint = f"sampling.endpoint={{ servers = [{addresses}], patience_s = 2.0 }}"
    return ["sampling.engine=endpoint", endpoint, "arms=['thinking']"]


def test_a_run_draws_at_servers_and_goes_on_when_they_are_back(place: tuple[Path, Forks], tmp_path: Path) -> None:
    recipe, forks = place
    seed = recipe.parent / "seed"
    with ExitStack() as stack:
        first, second = (stack.enter_context(completions_server(seed)) for _ in range(2))
        both = served(first.url, second.url)
        assert forks.run("run", str(recipe), *both, "--check", "--out", str(tmp_path / "none")) == {"code": 0}
        first.stop()
        second.stop()
        assert forks.run("run", str(recipe), *both, "--out", str(tmp_path / "run")) != {"code": 0}
        assert "no server of sampling.endpoint.servers answers" in forks.log.read_text()
        first.start()  # the other one stays away
        assert forks.run("run", str(recipe), *both, "--out", str(tmp_path / "run")) == {"code": 0}, forks.log.read_text()
        assert forks.run("run", str(recipe), *served(first.url), "--out", str(tmp_path / "one")) == {"code": 0}
    run = RunDir(tmp_path / "run")
    assert len(read_stage(run.iteration("thinking", 1) / "outputs", Output)) == 24
    assert len({folder for folder in first.taken if "checkpoints" in str(folder)}) > 1, "both checkpoints were measured"
    records = [
        {name: content for name, content in contents(tmp_path / name).items() if name.endswith((".parquet", ".safetensors"))}
        for name in ("run", "one")
    ]
    assert records[0]
    assert [name for name in records[0] if records[0][name] != records[1].get(name)] == []  # bytes would take hours to explain
    assert records[0].keys() == records[1].keys()
