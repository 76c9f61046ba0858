"""The table of engines, and the only place that makes one: sampling, judging, evaluation, chat and serving all come here.

A new engine takes one new file, with a function that has the signature of `Maker`, and one line in `ENGINES`; its name goes
into `inward.config.EngineKind`, so that `sampling.engine` accepts it. tests/contract/test_engines.py says what it has to hold.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Final, Protocol

from inward.config import Dtype, EngineKind, EngineOptions
from inward.engines.engine import Engine
from inward.engines.memory import ROWS
from inward.functions import named


class Maker(Protocol):
    """Makes an engine that holds the model of a folder or Hub name, or the adapter in a folder merged into `base`."""

    def __call__(
        self,
        model: Path | str,
        *,
        base: Path | None,
        dtype: Dtype,
        rows: int | None,
        trust_remote_code: bool,
        today: date | None,
        options: EngineOptions | None,
    ) -> Engine: ...


ENGINES: Final[dict[EngineKind, str]] = {
    "transformers": "inward.engines.transformers.engine:load_engine",
    "endpoint": "inward.engines.endpoint.engine:load_engine",
    "vllm": "inward.engines.vllm.engine:load_engine",
}
"""The function that makes each kind of engine."""

CHOOSE_ROWS: Final[frozenset[EngineKind]] = frozenset({"transformers"})
"""Engines that choose how many rows they draw side by side where nobody says."""


def load_engine(
    model: Path | str,
    kind: EngineKind = "transformers",
    *,
    base: Path | None = None,
    dtype: Dtype = "auto",
    rows: int | None = None,
    trust_remote_code: bool = False,
    today: date | None = None,
    options: EngineOptions | None = None,
) -> Engine:
    """Return an engine of a kind that holds a model, or an adapter merged into `base`, drawing `rows` completions at a time.

    `today` is the date for chat templates that write one: the present date unless given, and the same while the engine lives.
    `options` is the table of the engine's own settings (`SamplingSettings.engine_options`). Without `rows` engines that can
    choose do, and others draw `ROWS`.
    Raises UsageError where the model cannot be loaded, and MissingExtraError where the engine's package is not installed.
    """
    make: Maker = named(ENGINES[kind])
    if rows is None and kind not in CHOOSE_ROWS:
        rows = ROWS
    return make(model, base=base, dtype=dtype, rows=rows, trust_remote_code=trust_remote_code, today=today, options=options)
