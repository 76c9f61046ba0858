"""What a server has to offer before a run may train on what it draws, and how it is given new weights.

Names of vLLM 0.32: `/collective_rpc` and `/reset_prefix_cache` (with VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inward.engines.endpoint.asking import Line, Result
from inward.engines.endpoint.completions import (
    Nonsense,
    Served,
    Stretch,
    draw_body,
    read_drawn,
    read_models,
    read_prompt,
    text_body,
)
from inward.engines.endpoint.http_answer import Trouble, Useless
from inward.engines.endpoint.pool import Offer, Out, Server
from inward.engines.engine import Decoding

RESET_TRIES, RESET_WAIT_S = 20, 0.5
"""The cache of prefixes cannot be emptied while a request that was broken off still holds a part of it."""
PROBE = Decoding(temperature=1.0, top_p=1.0, top_k=1)
TOKENS_NEEDED = (
    "Sampling that a run trains on needs a server that takes prompts as tokens and returns tokens, as `vllm serve` does "
    "(/v1/completions with return_token_ids). Other servers can only judge: name them in the endpoint of a judge"
)


Text = tuple[str, Sequence[int]]
"""A text with the tokens that it has in the model's own tokenizer."""


class Unwell(Exception):
    """A server cannot be used; `out` says why. `gone`: it was not reached at all."""

    def __init__(self, reason: str, *, lasting: bool, gone: bool = False) -> None:
        super().__init__(reason)
        self.out, self.gone = Out(reason=reason, lasting=lasting), gone


def require_object(result: Result, what: str = "") -> dict[str, Any]:
    """Return the object of an answer. Raises `Unwell` where there is none."""
    if isinstance(result, dict):
        return result
    reason = f"{what}{told(result.reason)}"
    if isinstance(result, Trouble):
        raise Unwell(reason, lasting=False, gone=result.gone)
    raise Unwell(reason, lasting=True)


def told(reason: str) -> str:
    """Return why a server's answer is of no use, so that it can follow the server's name."""
    if reason.startswith("HTTP "):
        return f"answers with {reason}"
    return f"says nothing of use: {reason}" if reason.startswith("the answer") else reason


async def list_models(line: Line, server: Server) -> list[Served]:
    """Return the models that a server lists. Raises `Unwell`."""
    try:
        return read_models(require_object(await line.send("GET", f"{server.address}/models")))
    except Nonsense as error:
        raise Unwell(str(error), lasting=True) from None


async def examine(line: Line, server: Server, wanted: str | None, tokens: Sequence[int], text: Text) -> Offer:
    """Return what a server offers. `tokens` are any prompt, `text` is one on which tokenizers differ.

    Raises `Unwell` for a server that takes no tokens or returns none, cuts text otherwise, or does not serve the model.
    """
    try:
        served = await list_models(line, server)
    except Unwell as error:
        if error.gone or error.out.lasting or wanted is None:
            raise
        served = []  # `transformers serve` answers with an error where it finds no folder of models
    name = _name(served, wanted)
    stretch = Stretch(tokens=tuple(tokens), limit=1, stops=frozenset(), seed=0)
    result = await line.post(f"{server.address}/completions", draw_body(name, stretch, PROBE, logps=False))
    if isinstance(result, Trouble):
        require_object(result)
    listed = name in [model.name for model in served]
    if isinstance(result, Useless) and not listed and await _knows(line, f"{server.address}/completions"):
        raise Unwell(f"does not serve the model {name!r} but {_names(served)}: mend sampling.endpoint.model", lasting=True)
    if not isinstance(result, dict):
        raise Unwell(f"takes no prompts as tokens: it {told(result.reason)}. {TOKENS_NEEDED}", lasting=True)
    try:
        read_drawn(result, stretch, vocabulary=1 << 31, logps=False)
    except Nonsense as error:
        raise Unwell(f"returns no tokens: {error}. {TOKENS_NEEDED}", lasting=True) from None
    await _require_tokenizer(line, server, name, text)
    return Offer(name=name, reload=await _knows(line, f"{server.root}/collective_rpc"))


async def take_weights(line: Line, server: Server, folder: Path) -> None:
    """Have a server read the weights of a folder in place of its own. Raises `Unwell`."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    result = await line.send("POST", f"{server.root}/collective_rpc", _json(body), empty=True)
    require_object(
        result,
        f"could not take the weights of {folder}; it has to see that folder under the same path, and the model has to be of "
        "the architecture that it was started with: ",
    )
    for _ in range(RESET_TRIES):
        answer = require_object(await line.post(f"{server.root}/reset_prefix_cache", {}), "could not empty its cache: ")
        if answer.get("success") is not False:
            return
        await asyncio.sleep(RESET_WAIT_S)
    raise Unwell("does not empty its cache of prefixes, which belongs to the earlier weights", lasting=False)


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode("ascii")


async def _knows(line: Line, url: str) -> bool:
    """Say whether a server has something at an address to which requests are posted: asked otherwise, it says HTTP 405."""
    answer = await line.fetch("GET", url)
    if isinstance(answer, Trouble):
        raise Unwell(answer.reason, lasting=False, gone=answer.gone)
    return answer.status_code != 404


async def _require_tokenizer(line: Line, server: Server, name: str, text: Text) -> None:
    result = await line.post(f"{server.address}/completions", text_body(name, text[0]))
    try:
        prompt = read_prompt(require_object(result, "could not say the tokens of a text: "))
    except Nonsense as error:
        raise Unwell(str(error), lasting=True) from None
    if prompt is None:
        raise Unwell(f"does not say which tokens it read (prompt_token_ids). {TOKENS_NEEDED}", lasting=True)
    if prompt != list(text[1]):
        raise Unwell("cuts text into other tokens than the tokenizer of the model folder: it serves another one", lasting=True)


def _name(served: Sequence[Served], wanted: str | None) -> str:
    if wanted is not None:
        return wanted
    models = [model for model in served if not model.adapter]
    if len(models) != 1:
        raise Unwell(f"serves {_names(served)}: say which one in sampling.endpoint.model", lasting=True)
    return models[0].name


def _names(served: Sequence[Served]) -> str:
    return ", ".join(repr(model.name) for model in served) or "no model"
