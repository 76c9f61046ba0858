"""`inward chat`: talk to a model. Only its responses are shown, unless the thoughts are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.engines.engine import Decoding
    from inward.thought import Split, ThoughtFormat

Turns = list[dict[str, str]]
Ask = Callable[[Sequence[dict[str, str]]], "Split"]


def chat(
    model: Annotated[str, typer.Argument(help="A model folder or its URL, a GGUF file, a Hub name, or smollm2.")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="generic, specific or direct. Default: what the model was trained with, else direct."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    show_thoughts: Annotated[bool, typer.Option("--show-thoughts", help="Show the thoughts too.")] = False,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Write the markers for the model and let it think for at most so many tokens."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest output, thought included.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.01, help="Lower is more of the same.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    tries: Annotated[int, typer.Option(min=1, help="How often an answer that breaks the format is drawn, at most.")] = 3,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")] = False,
) -> None:
    """Talk to a model and see its responses only.

    \b
    Example:
      inward chat runs/demo/thinking/iter_002/model --show-thoughts
      inward chat smollm2 --format specific --budget 64 --prompt "Why is the sky blue?"
    """
    from inward.engines.engine import Decoding
    from inward.models.names import local_folder
    from inward.store.models import fetched_model
    from inward.store.remote import is_url, path_of

    fetched = fetched_model(model, code=trust_remote_code, report=output.note) if is_url(model) else None
    fmt, taught_budget = _format(form, fetched or path_of(model))
    decoding = Decoding(temperature=temperature, max_new_tokens=max_new_tokens)
    folder = local_folder(str(fetched or model), trust_remote_code=trust_remote_code, report=output.note)
    ask = make_ask(folder, fmt, decoding, budget or taught_budget, seed, tries, trust_remote_code)
    history: Turns = []
    for text in [prompt] if prompt is not None else _lines():
        answer = ask(turns(fmt, history, text, system))
        _show(answer, show_thoughts)
        if answer.response is not None:
            history += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.response}]
    if prompt is not None and not history:
        raise typer.Exit(1)


def turns(fmt: ThoughtFormat, history: Turns, text: str, system: str | None) -> Turns:
    """Return the chat turns for the next answer: earlier ones without thought prompt or thoughts, then p + x."""
    from inward.thought import messages

    *before, last = messages(fmt, text)
    instructions = [part for part in (system, *(turn["content"] for turn in before)) if part]
    opening = [{"role": "system", "content": "\n\n".join(instructions)}] if instructions else []
    return [*opening, *history, last]


def make_ask(
    folder: Path,
    fmt: ThoughtFormat,
    decoding: Decoding,
    budget: int | None,
    seed: int,
    tries: int,
    trust_remote_code: bool,
) -> Ask:
    """Load the model; return a function from chat turns to a split answer, drawn again while it breaks the format."""
    from transformers.utils import logging

    from inward.engines.engine import Request
    from inward.engines.load import load_engine
    from inward.sampling.sample import make_scaffold, seed_for
    from inward.thought import split

    logging.disable_progress_bar()  # this process does nothing but chat
    engine = load_engine(folder, trust_remote_code=trust_remote_code)
    scaffold = make_scaffold(fmt, budget) if budget and fmt.thinks else None

    def ask(messages: Sequence[dict[str, str]]) -> Split:
        tokens = engine.encode(messages)
        for n in range(tries):
            request = Request(id="chat", tokens=tokens, k=1)
            (drawn,) = engine.generate([request], decoding, seed=seed_for(seed, n), scaffold=scaffold)
            answer = split(fmt, drawn.text, finished=drawn.finish == "stop")
            if answer.response is not None:
                break
        return answer

    return ask


def _format(name: str | None, model: Path) -> tuple[ThoughtFormat, int | None]:
    """Return the thought format and thought budget: as asked for, else those the model was trained with, else direct."""
    from inward.errors import UsageError
    from inward.thought import BUILT_IN

    trained = taught(model)
    if name is None:
        return trained or (BUILT_IN["direct"], None)
    if trained and trained[0].name == name:
        return trained
    if name not in BUILT_IN:
        raise UsageError(f"--format {name!r} is none of {', '.join(BUILT_IN)}")
    return BUILT_IN[name], None


def taught(model: Path) -> tuple[ThoughtFormat, int | None] | None:
    """Read the format from beside an exported model, or from the recipe of the run that the model lies in."""
    from inward.runs.directory import RunDir
    from inward.runs.opening import stored_recipe
    from inward.storage import read_json
    from inward.thought import ThoughtFormat

    if (model / "thought_format.json").is_file():
        stored = read_json(model / "thought_format.json")
        budget = stored.pop("scaffold_budget")
        return ThoughtFormat(**stored), budget
    folder = model.resolve()
    if folder.name != "model" or len(folder.parents) < 3:
        return None
    run, arm = RunDir(folder.parents[2]), folder.parents[1].name
    if not run.config.is_file():
        return None
    recipe = stored_recipe(run)
    scaffold = recipe.thought.scaffold
    if arm == "thinking":
        return recipe.thought_format("thinking"), scaffold.budget if scaffold else None
    return recipe.thought_format("direct"), None


def _lines() -> Iterator[str]:
    """Yield what the user types, or the lines of standard input, without the empty ones."""
    typing = sys.stdin.isatty()
    if typing:
        output.note("Type a message and press Enter; end with Ctrl-D.")
    while True:
        try:
            text = input("> " if typing else "")
        except EOFError:
            return
        if text.strip():
            yield text


def _show(answer: Split, show_thoughts: bool) -> None:
    if show_thoughts and answer.thought:
        output.styled(output.clean(answer.thought) + "\n", "dim")
    if answer.response is not None:
        output.write(output.clean(answer.response))
    else:
        output.note(
            f"(no response: the output broke the thought format, {answer.error}. --format direct asks without a thought, "
            "--budget 128 writes the markers for the model, --max-new-tokens gives it more room)"
        )
