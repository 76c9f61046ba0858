"""Many short iterations: what goes on over them, what is left out between validations, and a kill at any instant of them."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inward.cli.reading import open_view
from inward.cli.status import document, finished, stages
from inward.config import FileSource, PromptSettings
from inward.errors import RunChangedError
from inward.prompts import load_prompts
from inward.prompts.draw import draw
from inward.records import Output, Pair
from inward.runs.directory import RunDir
from inward.runs.opening import prepare, stored_recipe
from inward.runs.shards import read_stage
from tests.integration.test_kill import Forks, contents, write_recipe
from tests.integration.test_loop import run

pytestmark = pytest.mark.slow

SETTINGS = (
    "iterations=4",
    "prompts.per_iteration=3",
    "prompts.recur=true",
    "prompts.validation=6",  # of twelve: the second iteration ends a pass, and the fourth another one
    "validation.every=3",
    "training.carry_optimiser=true",
    "execution.keep_models=1",
)
SHARP_KILLS = (
    "thinking/iter_001/outputs/*.parquet",
    "thinking/iter_001/checkpoints/state",
    "thinking/iter_001/checkpoints/*epoch_02",
    "thinking/iter_001/checkpoints/optimiser",
    "thinking/iter_001/*evaluation.json",
    "thinking/iter_001/model",
    "thinking/iter_001/optimiser",
    "direct/iter_001/checkpoints/state/*step_00000001",
    "direct/iter_002/pairs",
    "thinking/iter_002/checkpoints/*state/*step_00000002",
    "thinking/iter_002/checkpoints/*epoch_02",
    "thinking/iter_002/evaluation.json",
    "thinking/.tmp-removed-model",
    "thinking/iter_003/checkpoints/epoch_01",
    "thinking/iter_003/validation/epoch_01/outputs",
    "thinking/iter_003/evaluation.json",
    "direct/iter_003/model",
    "comparison/*iter_003.json",
    "thinking/iter_004/optimiser",
    "direct/iter_004/evaluation.json",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    folder = tmp_path_factory.mktemp("semi-online")
    recipe = write_recipe(folder)
    forks = Forks(folder / "log.txt")
    yield recipe, forks
    forks.close()


@pytest.fixture(scope="module")
def whole(place: tuple[Path, Forks], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run(place, tmp_path_factory.mktemp("whole") / "run", *SETTINGS)


def outcome(done: RunDir, arm: str, t: int) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((done.iteration(arm, t) / "evaluation.json").read_text())
    return stored


def test_only_every_third_iteration_and_the_last_are_validated(whole: RunDir) -> None:
    for arm in ("thinking", "direct"):
        measured = {t: sorted(outcome(whole, arm, t)["evaluations"]) for t in range(5)}
        assert measured == {0: ["seed"], 1: [], 2: [], 3: ["epoch_01", "epoch_02"], 4: ["epoch_01", "epoch_02"]}
        assert [outcome(whole, arm, t)["chosen"] for t in (1, 2)] == ["epoch_02"] * 2, "the last one goes on"
        assert not (whole.iteration(arm, 1) / "validation").exists()
    assert [path.name for path in sorted(whole.comparison(0).parent.iterdir())] == [
        "iter_000.json",
        "iter_003.json",
        "iter_004.json",
    ]


def test_people_and_programs_are_told_of_iterations_without_validation(whole: RunDir, place: tuple[Path, Forks]) -> None:
    recipe = stored_recipe(whole)
    assert finished(whole, recipe)
    for row in stages(whole, recipe):
        assert row["done"] == row["total"] > 0, row
    rows = document(whole, recipe)["arms"]["thinking"]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row.get("score") is None for row in rows] == [False, True, True, False, False]
    assert all(row["finished"] and row["pairs"] > 0 for row in rows[1:])
    for command in (("status", str(whole.root)), ("show", str(whole.root), "--iteration", "2")):
        place[1].log.write_text("")
        assert place[1].run(*command) == {"code": 0}, place[1].log.read_text()


def test_a_pass_over_the_prompts_follows_the_other_and_samples_differ(whole: RunDir) -> None:
    outputs = [read_stage(whole.iteration("thinking", t) / "outputs", Output) for t in (1, 2, 3, 4)]
    prompts = [{output.prompt_id for output in part} for part in outputs]
    assert prompts[0] | prompts[1] == prompts[2] | prompts[3]
    assert not prompts[0] & prompts[1]
    held_out = read_stage(whole.iteration("thinking", 0) / "validation" / "seed" / "outputs", Output)
    assert not {output.prompt_id for output in held_out} & (prompts[0] | prompts[1])
    for again in outputs[2:]:
        ids = [output.id for output in again]
        assert len(set(ids)) == len(ids)
    first = {output.id: output.tokens for part in outputs[:2] for output in part}
    second = {output.id: output.tokens for part in outputs[2:] for output in part}
    assert first.keys() == second.keys()
    assert sum(first[id_] != second[id_] for id_ in first) > len(first) / 2


def test_one_state_and_no_more_models_than_are_kept(whole: RunDir) -> None:
    for arm in ("thinking", "direct"):
        folders = {t: whole.iteration(arm, t) for t in (1, 2, 3, 4)}
        assert [t for t, folder in folders.items() if (folder / "optimiser").exists()] == [4]
        scores = {t: row["evaluations"][row["chosen"]]["score"] for t in (3, 4) for row in [outcome(whole, arm, t)]}
        kept = {4} if scores[4] > scores[3] else {3, 4}  # the last one, and the best of those that were validated
        assert {t for t, folder in folders.items() if (folder / "model").exists()} == kept
        for folder in folders.values():
            assert not list((folder / "checkpoints").glob("epoch_*"))
            assert not (folder / "checkpoints" / "optimiser").exists()
            assert read_stage(folder / "pairs", Pair), "records stay"
    assert open_view(whole.root, "thinking", None, "model").t == 4


def test_moments_and_schedule_go_on_over_iterations(whole: RunDir) -> None:
    from safetensors.torch import load_file

    files = [whole.iteration("thinking", t) / "checkpoints" / "metrics.jsonl" for t in (1, 2, 3, 4)]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    rates = [[row["lr"] for row in part] for part in rows]
    assert max(rates[0] + rates[1]) == max(rate for part in rates for rate in part)
    assert min(rates[0]) > max(rates[-1]), "the rate falls over the whole run"
    moments = load_file(whole.iteration("thinking", 4) / "optimiser" / "moments.safetensors")
    taken = sum(len(part) for part in rows[:2])  # of the others as many as the chosen epoch had
    for t, part in zip((3, 4), rows[2:], strict=True):
        taken += len(part) // (2 if outcome(whole, "thinking", t)["chosen"] == "epoch_01" else 1)
    assert {float(value) for name, value in moments.items() if name.startswith("step.")} == {float(taken)}


def test_more_iterations_would_be_another_schedule(whole: RunDir) -> None:
    recipe = stored_recipe(whole)
    with pytest.raises(RunChangedError, match="iterations: 4 there, 6 now"):
        prepare(whole, recipe.model_copy(update={"iterations": 6}), "")


def test_killed_anywhere_a_semi_online_run_ends_the_same(place: tuple[Path, Forks], whole: RunDir, tmp_path: Path) -> None:
    recipe, forks = place
    expected, broken = contents(whole.root), tmp_path / "broken"
    instants, killed = random.Random(11), 0
    for trigger in SHARP_KILLS:
        after = str(broken / trigger)
        delay = instants.choice([0.0, 0.0, instants.uniform(0.0, 0.1)])
        answer = forks.run("run", str(recipe), *SETTINGS, "--out", str(broken), after=after, delay=delay)
        assert answer in ({"signal": signal.SIGKILL}, {"code": 0}), forks.log.read_text()
        killed += answer == {"signal": signal.SIGKILL}
    assert killed >= len(SHARP_KILLS) // 2
    assert forks.run("run", str(recipe), *SETTINGS, "--out", str(broken)) == {"code": 0}, forks.log.read_text()
    found = contents(broken)
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs after the kills"


def test_cut_weights_are_carried_on_as_whole_ones_are(place: tuple[Path, Forks], tmp_path: Path) -> None:
    settings = (*SETTINGS, "iterations=2", "training.epochs=1", "arms=['direct']")
    steps = []
    for out, *overrides in (("one",), ("cut", "processes=2", "shard=true")):
        done = run(place, tmp_path / out, *settings, *(f"execution.{override}" for override in overrides))
        files = [done.iteration("direct", t) / "checkpoints" / "metrics.jsonl" for t in (1, 2)]
        steps.append([json.loads(line) for file in files for line in file.read_text().splitlines()])
    for one, cut in zip(*steps, strict=True):
        for name in ("loss", "grad_norm", "lr", "margin"):
            assert cut[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (one["step"], name)


SHORT = ("prompts.per_iteration=2", "prompts.validation=4", "arms=['direct']", "training.carry_optimiser=true")


def hopeless(place: tuple[Path, Forks], folder: Path, *iterations: int) -> str:
    """Give the prompts of some iterations a constraint that every response meets; return the setting that uses them."""
    file = place[0].parent / "prompts.jsonl"
    source = FileSource(kind="file", path=str(file))
    prompts = load_prompts(PromptSettings(sources=(source,))).prompts
    drawn = draw(prompts, per_iteration=2, validation=4, iterations=4, seed=0)
    texts = {prompt.text for t in iterations for prompt in drawn.iterations[t - 1]}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["prompt"] in texts:
            row["instruction_id_list"] = ["length_constraints:number_words"]
            row["kwargs"] = [{"num_words": 500, "relation": "less than"}]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f'prompts.sources=[{{ kind = "file", path = "{path}" }}]'


@pytest.mark.parametrize("empty", [1, 2])
def test_an_iteration_without_pairs_goes_on_with_the_model_as_it_is(
    place: tuple[Path, Forks], tmp_path: Path, empty: int
) -> None:
    settings = (*SHORT, "iterations=3", "validation.every=2", hopeless(place, tmp_path, empty))
    done = run(place, tmp_path / "run", *settings)
    said = place[1].log.read_text()
    assert f"direct iteration {empty}: no prompt gave a pair (all scores equal: 2), so that it goes on" in said
    assert "(1 in a row; 3 end the run)" in said
    stored = outcome(done, "direct", empty)
    assert (stored["chosen"], stored["without_pairs_in_a_row"]) == ("unchanged", 1)
    assert sorted(stored["evaluations"]) == (["unchanged"] if empty == 2 else [])
    weights = [done.iteration("direct", t) / "model" / "model.safetensors" for t in (1, 2, 3)]
    before = weights[empty - 2] if empty > 1 else place[0].parent / "seed" / "model.safetensors"
    assert weights[empty - 1].samefile(before), "no byte is copied"
    assert weights[2].read_bytes() != weights[1].read_bytes()
    recipe = stored_recipe(done)
    assert finished(done, recipe)
    for row in stages(done, recipe):
        assert row["done"] == row["total"] > 0, row
    row = document(done, recipe)["arms"]["direct"][empty]
    assert (row["checkpoint"], row["pairs"], row["without_pairs_in_a_row"]) == ("unchanged", 0, 1)

    forks, broken = place[1], tmp_path / "broken"
    for trigger in ("*model", "*optimiser", "*evaluation.json", "pairs"):
        after = str(broken / "direct" / f"iter_00{empty}" / trigger)
        forks.run("run", str(place[0]), *settings, "--out", str(broken), after=after, delay=0.0)
    assert contents(run(place, broken, *settings).root) == contents(done.root)


def test_three_iterations_without_pairs_end_a_run(place: tuple[Path, Forks], tmp_path: Path) -> None:
    recipe, forks = place
    settings = (*SHORT, hopeless(place, tmp_path, 1, 2, 3))
    for _ in range(2):  # the same again
        forks.log.write_text("")
        assert forks.run("run", str(recipe), *settings, "iterations=4", "--out", str(tmp_path / "run")) == {"code": 1}
        said = " ".join(forks.log.read_text().split())
        assert "direct iteration 3: this iteration is number 3 in a row in which no prompt gave a pair" in said
        assert "all scores equal: 2): use prompts on which the model's outputs differ" in said


def test_a_run_without_any_pair_does_not_end_as_if_it_had_trained(place: tuple[Path, Forks], tmp_path: Path) -> None:
    recipe, forks = place
    settings = (*SHORT, "training.carry_optimiser=false", hopeless(place, tmp_path, 1))
    forks.log.write_text("")
    assert forks.run("run", str(recipe), *settings, "iterations=1", "--out", str(tmp_path / "run")) == {"code": 1}
    assert "direct iteration 1: no prompt gave a pair" in forks.log.read_text()
    run(place, tmp_path / "run", *settings, "iterations=2")  # more iterations may be added, and go on from there


def test_a_last_iteration_that_was_not_the_last_is_validated_all_the_same(place: tuple[Path, Forks], tmp_path: Path) -> None:
    recipe, forks = place
    settings = (*SHORT, "training.carry_optimiser=false", "validation.every=4")
    out = tmp_path / "run"
    after = str(out / "direct" / "iter_002" / "outputs")
    answer = forks.run("run", str(recipe), *settings, "iterations=4", "--out", str(out), after=after, delay=0.0)
    assert answer == {"signal": signal.SIGKILL}
    shutil.rmtree(out / "direct" / "iter_002")
    done = run(place, out, *settings, "iterations=1")
    assert list(outcome(done, "direct", 1)["evaluations"]) == ["epoch_02"]


def test_each_iteration_loads_its_model_no_oftener_than_it_must(
    place: tuple[Path, Forks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without validation M_t is loaded by the sampler, by the reference and by the trainer; nothing is merged or copied."""
    from inward.config import load_recipe
    from inward.engines.transformers import engine
    from inward.execution.here import Here
    from inward.loop import run_loop
    from inward.runs.progress import Silent
    from inward.stages.run import Run
    from inward.training import reference, trainee

    loads: list[tuple[str, str]] = []

    def count(who: str, module: Any, name: str) -> None:
        load = getattr(module, name)

        def counted(folder: Any, *rest: Any, **named: Any) -> Any:
            loads.append((who, Path(folder).parent.name))
            return load(folder, *rest, **named)

        monkeypatch.setattr(module, name, counted)

    count("sampler", engine, "load_model")
    count("reference", reference, "load_model")
    count("trainer", trainee, "load_model")
    settings = ("iterations=3", "prompts.per_iteration=6", "prompts.recur=true", "arms=['direct']", "validation.every=3")
    out = tmp_path / "run"
    out.mkdir()
    recipe = load_recipe(place[0], [*settings, "training.carry_optimiser=true"])
    run_loop(Run(recipe, RunDir(out), Silent(), Here()))
    seed = place[0].parent.name
    assert loads == [
        ("sampler", seed),  # for the seed's validation and the first outputs
        ("reference", seed),
        ("trainer", seed),
        ("sampler", "iter_001"),
        ("reference", "iter_001"),
        ("trainer", "iter_001"),
        ("sampler", "iter_002"),
        ("reference", "iter_002"),
        ("trainer", "iter_002"),
        ("sampler", "checkpoints"),  # the last iteration is validated: two epochs
        ("sampler", "checkpoints"),
    ]
