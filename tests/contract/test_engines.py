"""The contract of `Engine`, held against every engine we ship: each test runs on all of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from inward.config import EndpointEngineSettings
from inward.engines.engine import Completion, Decoding, Engine, Request, Scaffold
from inward.engines.load import load_engine
from inward.engines.scripted import ScriptedEngine
from inward.errors import UsageError
from tests.completions_server import CompletionsServer
from tests.tiny import tiny_model

TEXTS = ("Hi", "Why is the sky blue?", "Name three rivers and say where they flow.", "1 + 1 =")
SHORT = Decoding(max_new_tokens=24, temperature=1.0)
LONG = Decoding(max_new_tokens=60, temperature=1.5, top_p=1.0)
SCAFFOLD = Scaffold(opening="Think:\n", closing="\n\n<R>\n", marker="<R>", budget=12)


def scripted(_: Path) -> Engine:
    return ScriptedEngine()


def transformers(folder: Path) -> Engine:
    engine: Any = load_engine(tiny_model(folder), rows=6, dtype="float32")
    assert engine.shared
    return engine


def padded(folder: Path) -> Engine:
    engine: Any = transformers(folder)
    engine.model.set_attn_implementation("sdpa")
    return replace(engine, shared=False)


def smollm2(_: Path) -> Engine:
    from inward.models.names import local_folder

    return load_engine(local_folder("smollm2"), rows=16)


def endpoint(folder: Path) -> Engine:
    return endpoint_holding(tiny_model(folder), servers=2)


def endpoint_holding(folder: Path, servers: int = 1) -> Engine:
    """Each engine has servers of its own: what one is given, another would not expect."""
    addresses = []
    for _ in range(servers):
        server = CompletionsServer(folder)
        server.start()
        addresses.append(server.url)
    options = EndpointEngineSettings(servers=tuple(addresses), in_flight=24)
    return load_engine(folder, "endpoint", dtype="float32", options=options)


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "scripted": scripted,
    "transformers": transformers,
    "padded": padded,
    "smollm2": smollm2,
    "endpoint": endpoint,
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name == "smollm2" else ()) for name in ENGINES]
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return ENGINES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reproducible(engine: Engine) -> Engine:
    """Engines whose floats do not depend on the batch: bf16 rounding on SmolLM2 can tip a draw."""
    if "bfloat16" in str(getattr(getattr(engine, "model", None), "dtype", "")):
        pytest.skip("in bf16 the batch's shape changes the rounding")
    return engine


def ask(engine: Engine, texts: Sequence[str] = TEXTS, k: int = 3) -> list[Request]:
    return [Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=k) for text in texts]


@cache
def written_by(engine: Engine, text: str) -> tuple[int, ...]:
    """The tokens of a text that the engine writes, read off a completion that consists of little else."""
    scaffold = Scaffold(opening=text, closing="<R>", marker="<R>", budget=1)
    drawn = engine.generate(ask(engine, TEXTS[:1], k=1), replace(SHORT, max_new_tokens=60), seed=0, scaffold=scaffold)
    first = drawn[0]
    return first.tokens[: first.written.index(False)]


def spans(written: Sequence[bool]) -> list[tuple[bool, int]]:
    runs: list[tuple[bool, int]] = []
    for value in written:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs


def test_completions_come_in_the_order_of_requests_and_indices(engine: Engine) -> None:
    requests = ask(engine)
    requests[1] = replace(requests[1], k=20)  # more than the engine's rows
    drawn = engine.generate(requests, SHORT, seed=1)
    expected = [(request.id, index) for request in requests for index in range(request.k)]
    assert [(one.request_id, one.index) for one in drawn] == expected


def test_nothing_asked_nothing_drawn(engine: Engine) -> None:
    assert engine.generate([], SHORT, seed=1) == []


def test_the_same_seed_gives_the_same_completions_and_another_seed_others(engine: Engine) -> None:
    first, again, other = (engine.generate(ask(engine), SHORT, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_samples_of_one_request_differ(engine: Engine) -> None:
    drawn = engine.generate(ask(engine, k=4), SHORT, seed=3)
    assert len({one.tokens for one in drawn if one.request_id == TEXTS[1]}) > 1


def test_a_completion_does_not_depend_on_the_other_requests(reproducible: Engine) -> None:
    together = reproducible.generate(ask(reproducible, k=3), LONG, seed=5)
    for text in TEXTS:
        alone = reproducible.generate(ask(reproducible, [text], k=3), LONG, seed=5)
        assert alone == [one for one in together if one.request_id == text]


def test_fewer_samples_are_the_first_of_more(reproducible: Engine) -> None:
    more = reproducible.generate(ask(reproducible, k=5), SHORT, seed=6)
    fewer = reproducible.generate(ask(reproducible, k=2), SHORT, seed=6)
    assert fewer == [one for one in more if one.index < 2]


def test_a_completion_that_is_drawn_alone_is_the_one_that_it_is_among_others(reproducible: Engine) -> None:
    (request,) = ask(reproducible, TEXTS[:1], k=4)
    together = reproducible.generate([request], SHORT, seed=5)
    apart = reproducible.generate([replace(request, k=2, indices=(1, 3))], SHORT, seed=5)
    assert apart == [together[1], together[3]]


def test_a_completion_ends_with_its_end_token_or_at_the_limit(engine: Engine) -> None:
    drawn = engine.generate(ask(engine, k=16), LONG, seed=7)
    ends = {one.tokens[-1] for one in drawn if one.finish == "stop"}
    assert {one.finish for one in drawn} == {"stop", "length"}
    for one in drawn:
        assert not any(one.written)
        assert len(one.written) == len(one.tokens) <= LONG.max_new_tokens
        assert not ends & set(one.tokens[:-1])
        assert (one.finish == "length") == (one.tokens[-1] not in ends)
        assert one.finish == "stop" or len(one.tokens) == LONG.max_new_tokens
        assert one.finish == "length" or not one.text.endswith("|>")  # the end token is in the tokens, not in the text


def test_log_probabilities_come_where_they_are_asked_for_or_the_engine_says_that_it_has_none(engine: Engine) -> None:
    asked = replace(LONG, logps=True, max_new_tokens=40)
    assert all(one.logps is None for one in engine.generate(ask(engine), SHORT, seed=1))
    if not engine.abilities.logps:
        with pytest.raises(UsageError, match="no probabilities"):
            engine.generate(ask(engine), asked, seed=1)
        return
    for one in engine.generate(ask(engine), asked, seed=1, scaffold=SCAFFOLD):
        assert one.logps is not None
        assert len(one.logps) == len(one.tokens)
        assert all(-200 < logp <= 0 for logp in one.logps)
        assert len(set(one.logps)) > 1


def test_progress_counts_every_completion_and_every_drawn_token_once(engine: Engine) -> None:
    calls: list[tuple[int, int]] = []
    drawn = engine.generate(ask(engine), SHORT, seed=1, progress=lambda done, tokens: calls.append((done, tokens)))
    assert sum(done for done, _ in calls) == len(drawn)
    assert sum(tokens for _, tokens in calls) == sum(len(one.tokens) for one in drawn)


def test_the_scaffold_writes_both_markers_and_bounds_the_thought(engine: Engine) -> None:
    drawn = engine.generate(ask(engine, k=6), replace(LONG, max_new_tokens=64), seed=8, scaffold=SCAFFOLD)
    opening, closing = written_by(engine, SCAFFOLD.opening), written_by(engine, SCAFFOLD.closing)
    for one in drawn:
        runs = spans(one.written)
        assert runs[0] == (True, len(opening))
        assert one.tokens[: len(opening)] == opening
        assert one.text.startswith("Think:\n")
        if len(runs) == 2:  # the model wrote the marker itself
            assert "<R>" in one.text
            continue
        thought, forced = (runs[1][1], runs[2]) if runs[1][0] is False else (0, runs[1])
        assert thought <= SCAFFOLD.budget
        assert forced == (True, len(closing))
        start = len(opening) + thought
        assert one.tokens[start : start + len(closing)] == closing
        assert "\n\n<R>\n" in one.text
        assert len(one.tokens) <= 64
    assert any(spans(one.written)[1] == (False, SCAFFOLD.budget) for one in drawn)


def test_without_an_opening_the_thought_starts_at_once(engine: Engine) -> None:
    drawn = engine.generate(ask(engine, k=2), replace(SHORT, max_new_tokens=48), seed=9, scaffold=replace(SCAFFOLD, opening=""))
    assert not any(one.text.startswith("Think") for one in drawn)
    assert any(one.written[0] is False for one in drawn)
    assert all(any(one.written) for one in drawn if "<R>" in one.text)


def test_a_marker_that_the_model_writes_is_left_alone(reproducible: Engine) -> None:
    """What the model says by itself inside the thought is made the marker: then nothing but the opening is written."""
    greedy = Decoding(max_new_tokens=40, temperature=1e-4)
    requests = ask(reproducible, TEXTS[1:2], k=1)
    probe = reproducible.generate(requests, greedy, seed=1, scaffold=replace(SCAFFOLD, budget=20))[0]
    thought = _thought(reproducible, probe)
    pieces = [thought[at : at + size] for size in (3, 2, 1) for at in range(len(thought) - size + 1)]
    marker = next(piece for piece in pieces if piece.isprintable() and not set(piece) & {" ", "\N{REPLACEMENT CHARACTER}"})
    own = replace(SCAFFOLD, budget=20, marker=marker, closing=f"\n\n{marker}\n")
    drawn = reproducible.generate(requests, greedy, seed=1, scaffold=own)[0]
    assert spans(drawn.written)[0] == (True, len(written_by(reproducible, SCAFFOLD.opening)))
    assert len(spans(drawn.written)) == 2
    assert thought[: thought.index(marker) + len(marker)] in drawn.text


def _thought(engine: Engine, probe: Completion) -> str:
    return probe.text.removeprefix(SCAFFOLD.opening).partition("\n\n<R>\n")[0]


def test_a_prompt_that_does_not_fit_is_named(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"prompt 1 \+ 1 = has .*sampling\.max_new_tokens"):
        engine.generate(ask(engine, TEXTS[3:]), replace(SHORT, max_new_tokens=engine.context), seed=1)


def test_a_scaffold_without_room_for_a_response_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"thought\.scaffold\.budget = 12 .*sampling\.max_new_tokens = 13"):
        engine.generate(ask(engine), replace(SHORT, max_new_tokens=13), seed=1, scaffold=SCAFFOLD)


def test_the_same_prompt_twice_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="prompt Hi is asked for twice"):
        engine.generate(ask(engine, ["Hi", "Hi"]), SHORT, seed=1)


def test_encode_tells_turns_and_contents_apart(engine: Engine) -> None:
    user = [{"role": "user", "content": "Hi"}]
    system = [{"role": "system", "content": "Hi"}]
    assert engine.encode(user) == engine.encode(user)
    assert len({engine.encode(user), engine.encode(system), engine.encode(system + user)}) == 3


def scripted_holding(folder: Path) -> Engine:
    engine = ScriptedEngine()
    engine.load(folder)
    return engine


def transformers_holding(folder: Path) -> Engine:
    return load_engine(folder, rows=6, dtype="float32")


def bfloat16_holding(folder: Path) -> Engine:
    """Its linear layers are laid out anew for the processor's matrix unit, where there is one."""
    return load_engine(folder, rows=6, dtype="bfloat16")


Holding = Callable[[Path], Engine]


@pytest.fixture(
    params=[scripted_holding, transformers_holding, bfloat16_holding, endpoint_holding], ids=lambda make: make.__name__
)
def holding(request: pytest.FixtureRequest) -> Holding:
    """Return a function that makes an engine holding the model of a folder."""
    return request.param  # type: ignore[no-any-return]


def test_a_loaded_model_draws_as_a_fresh_engine_does(holding: Holding, tmp_path: Path) -> None:
    """Weights, tokenizer, context and end tokens are the new model's, and the first model can be taken back."""
    folders = {
        "first": tiny_model(tmp_path / "first", seed=3),
        "other weights": tiny_model(tmp_path / "other", seed=4),
        "another shape": tiny_model(tmp_path / "shape", seed=5, layers=3, hidden=64, context=512),
    }
    held = holding(folders["first"])
    drawn = {}
    for name in ("other weights", "another shape", "first"):
        held.load(folders[name])
        fresh = holding(folders[name])
        drawn[name] = held.generate(ask(held), LONG, seed=1)
        assert drawn[name] == fresh.generate(ask(fresh), LONG, seed=1)
        assert held.context == fresh.context
    assert drawn["first"] != drawn["other weights"]


def test_a_folder_without_a_model_leaves_the_held_one_as_it_is(holding: Holding, tmp_path: Path) -> None:
    engine = holding(tiny_model(tmp_path / "model"))
    before = engine.generate(ask(engine), SHORT, seed=1)
    with pytest.raises(UsageError, match="could be loaded from"):
        engine.load(tmp_path)
    assert engine.generate(ask(engine), SHORT, seed=1) == before


def test_a_closed_engine_says_so_until_it_loads_again(holding: Holding, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    engine = holding(folder)
    requests = ask(engine)
    before = engine.generate(requests, SHORT, seed=1)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.generate(requests, SHORT, seed=1)
    engine.load(folder)
    assert engine.generate(requests, SHORT, seed=1) == before


def test_a_closed_or_reloaded_engine_holds_on_to_no_earlier_model(tmp_path: Path) -> None:
    engine: Any = transformers_holding(tiny_model(tmp_path / "first"))
    first = [weakref.ref(parameter) for parameter in engine.model.parameters()]
    engine.load(tiny_model(tmp_path / "second", seed=1))
    assert not any(reference() is not None for reference in first)
    second = [weakref.ref(parameter) for parameter in engine.model.parameters()]
    engine.close()
    assert not any(reference() is not None for reference in second)
