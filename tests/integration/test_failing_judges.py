"""Judges that fail by lot, over a whole run: nothing that was not scored enters a pair (open-instruct makes it a 0.0)."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from inward.config import JudgeSettings, load_recipe
from inward.judging import make as judging
from inward.judging.combined import make as combined
from inward.judging.judge import Judge
from inward.judging.pairwise.by_text import LLMComparer
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.scripted import ScriptedChat
from inward.judging.scripted import Scripted
from inward.judging.tournament.adaptive import adaptive
from inward.loop import run_loop
from inward.records import Output, Pair, Score, Verdict, content_id
from inward.runs.directory import RunDir
from inward.runs.progress import Silent
from inward.runs.shards import read_stage
from inward.stages.run import Run
from tests.integration.test_kill import write_recipe

pytestmark = pytest.mark.slow
RATE = 0.2
FIGHTS = '{ kind = "pairwise", endpoint = { base_url = "http://127.0.0.1:1/v1", model = "none" } }'
CHECKS = '{ kind = "verifiable" }'
JUDGES = {
    "pointwise": CHECKS,
    "pairwise": FIGHTS,
    "cascade": f'{{ kind = "cascade", first = {CHECKS}, then = {FIGHTS}, sure = 0.05 }}',
    "panel": f'{{ kind = "panel", members = [{CHECKS}, {FIGHTS}] }}',
    "panel that must agree": f'{{ kind = "panel", members = [{CHECKS}, {FIGHTS}], rule = "agree" }}',
    "routed": f'{{ kind = "routed", routes = [{{ source = "prompts.jsonl", judge = {FIGHTS} }}] }}',
}
real = judging.make_judge


def failing(settings: JudgeSettings, *, rho: float = 0.0, today: date | None = None) -> Judge:
    """Make the judge of a recipe with parts that fail: judges made of judges are the real ones."""
    if settings.kind == "verifiable":
        return Scripted(score=lambda *texts: int(content_id(*texts), 16) / 2**64, failure_rate=RATE)
    if settings.kind == "pairwise":
        comparer = LLMComparer(chat=ScriptedChat(failure_rate=0.6))  # a response has several battles: most must fail
        return Pairwise(comparer=comparer, scheme=adaptive(rho=rho), scheme_name="adaptive")
    return real(settings, rho=rho, today=today)


@pytest.mark.parametrize("name", JUDGES)
def test_no_unscored_output_enters_a_pair(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (judging, combined):  # the latter makes parts by the name that it has imported
        monkeypatch.setattr(module, "make_judge", failing)
    overrides = [f"judge={JUDGES[name]}", f"validation.judge={CHECKS}", "arms=['thinking']", "training.epochs=1"]
    overrides += ["prompts.per_iteration=8", "prompts.validation=2"]
    run = RunDir(tmp_path / "run")
    run_loop(Run(load_recipe(write_recipe(tmp_path), overrides), run, Silent()))
    folder = run.iteration("thinking", 1)
    outputs = {output.id: output for output in read_stage(folder / "outputs", Output)}
    verdicts = read_stage(folder / "verdicts", Verdict)
    scores = {score.output_id: score for score in read_stage(folder / "scores", Score)}
    pairs = read_stage(folder / "pairs", Pair)
    unscored = {id_ for id_, score in scores.items() if score.value is None and outputs[id_].response is not None}
    assert pairs
    assert unscored, "no response was left unscored: this shows nothing"
    assert all(scores[id_].unscored for id_ in unscored)
    decided = {
        (outputs[id_].prompt_id, outputs[id_].response)
        for verdict in verdicts
        if verdict.value is not None
        for id_ in (verdict.first, verdict.second)
        if id_ is not None
    }
    for pair in pairs:
        chosen, rejected = outputs[pair.chosen_id], outputs[pair.rejected_id]
        assert not {pair.chosen_id, pair.rejected_id} & unscored
        assert (chosen.prompt_id, chosen.response) in decided
        assert pair.kind == "format_error" or (rejected.prompt_id, rejected.response) in decided
        assert (rejected.response is None) == (pair.kind == "format_error")
    if name in ("cascade", "routed"):
        by_prompt: dict[str, set[str]] = {}
        for verdict in verdicts:
            by_prompt.setdefault(verdict.prompt_id, set()).add(json.loads(verdict.detail)["ruled_by"]["part"])
        assert all(len(parts) == 1 for parts in by_prompt.values()), "one judge a prompt"
        assert name == "routed" or len(set.union(*by_prompt.values())) == 2
