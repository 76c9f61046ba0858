"""A whole run with lengths in tokens: the judge and the pairs go by the same ones, those that were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from inward.config import load_recipe
from inward.judging import make as judging
from inward.judging.judge import Group, Ruling
from inward.judging.scripted import Scripted
from inward.loop import run_loop
from inward.records import Output, Pair, content_id
from inward.runs.directory import RunDir
from inward.runs.progress import Silent
from inward.runs.shards import read_stage
from inward.stages.run import Run
from inward.storage import read_json
from tests.integration.test_kill import write_recipe
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow
TOKENIZER = tiny_tokenizer()
SEEN: dict[str, float] = {}


class Noting(Scripted):
    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        for group in groups:
            SEEN.update({group.prompt.id + text: length for text, length in zip(group.responses, group.measured, strict=True)})
        return super().judge(groups)


def tokens(output: Output) -> int:
    """Count the response's tokens one by one: the fewest at the end that hold its text, but for special ones."""
    plain = [token for token in output.tokens if token not in TOKENIZER.all_special_ids]
    texts = (TOKENIZER.decode(plain[-n:]).rstrip() for n in range(1, len(plain) + 1))
    return next((n for n, text in enumerate(texts, 1) if output.response and text.endswith(output.response)), 0)


def test_lengths_in_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Noting(score=lambda *texts: int(content_id(*texts), 16) / 2**64)
    monkeypatch.setattr(judging, "make_judge", lambda *_, **__: judge)
    overrides = ["arms=['direct']", "training.epochs=1", "pairing.length=tokens", "pairing.rho=auto"]
    run = RunDir(tmp_path / "run")
    SEEN.clear()
    run_loop(Run(load_recipe(write_recipe(tmp_path), overrides), run, Silent()))
    folder = run.iteration("direct", 1)
    outputs = {output.id: output for output in read_stage(folder / "outputs", Output)}
    told = read_json(folder / "pairing.json")
    scored = [pair for pair in read_stage(folder / "pairs", Pair) if pair.kind == "scored"]
    assert scored
    assert any(len(output.response or "") != tokens(output) for output in outputs.values()), "both units are the same here"
    assert told["length_unit"] == "tokens"
    assert told["chosen_length"] == pytest.approx(fmean(tokens(outputs[pair.chosen_id]) for pair in scored))
    assert told["rejected_length"] == pytest.approx(fmean(tokens(outputs[pair.rejected_id]) for pair in scored))
    for output in outputs.values():
        copies = [tokens(o) for o in outputs.values() if (o.prompt_id, o.response) == (output.prompt_id, output.response)]
        assert output.response is None or SEEN[output.prompt_id + output.response] == pytest.approx(fmean(copies))
