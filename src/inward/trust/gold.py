"""Pairs of responses that people have judged: reading them, and asking a judge about them in both orders.

A row holds `prompt`, `response_1`, `response_2`, and either `label` (1 or 2, with an optional `subset`), as LLMBar, or
`annotators` (one of 0, 1, 2 from each person, 0 a tie), as PandaLM. One file holds one of the two kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inward.errors import UsageError
from inward.judging.judge import Judge
from inward.judging.stage import judge_outputs
from inward.prompts.rows import file_rows
from inward.records import Output, Prompt, Verdict, content_id

FIELDS: Final = ("prompt", "response_1", "response_2", "label", "subset", "annotators")
TEXTS: Final = FIELDS[:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldPair:
    """Two responses to one prompt and what people said: `label` (1 or 2) or `annotators` (0 a tie), never both.

    `id` depends on the three texts alone: rows with the same texts are asked once, and each counts with what was said of it.
    """

    id: str
    prompt: str
    response_1: str
    response_2: str
    label: int | None = None
    subset: str | None = None
    annotators: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[str, str]:
        """What verdicts call the two responses."""
        return f"{self.id}/1", f"{self.id}/2"

    @property
    def majority(self) -> int | None:
        """What more than half of the people said; None where there is no such thing."""
        if self.label is not None:
            return self.label
        winner, times = Counter(self.annotators).most_common(1)[0]
        return winner if 2 * times > len(self.annotators) else None


def read_gold(path: Path, columns: Mapping[str, str] | None = None) -> list[GoldPair]:
    """Read gold pairs from JSON lines or Parquet; `columns` maps our field names to the file's. UsageError with file and line.

    A number or a truth value in the place of a text counts as it is written (`True`): conversions leave such things behind.
    """
    columns = dict(columns or {})
    if unknown := sorted(set(columns) - set(FIELDS)):
        raise UsageError(f"--columns maps {', '.join(unknown)}, but only {', '.join(FIELDS)} can be mapped")
    pairs: list[GoldPair] = []
    for where, row in file_rows(str(path)):
        pair = _pair(row, columns, where)
        if pairs and bool(pairs[0].annotators) != bool(pair.annotators):
            raise UsageError(
                f"{where}: this row has {_kind(pair)}, those before it {_kind(pairs[0])}: a file holds one of the two"
            )
        pairs.append(pair)
    if not pairs:
        raise UsageError(f"{path} holds no pairs")
    return pairs


def draw(pairs: Sequence[GoldPair], limit: int | None) -> list[GoldPair]:
    """Return all pairs, or `limit` of them, in an order that is random but always the same: fewer are the first of more."""
    return sorted(pairs, key=lambda pair: content_id("draw", pair.id))[:limit]


def ask(pairs: Sequence[GoldPair], judge: Judge) -> list[Verdict]:
    """Have pairs with different ids judged: each in both orders by a judge that compares, else both responses scored.

    A verdict's prompt is the pair, its responses are `GoldPair.ids`. Responses with the same text cannot be compared, which a
    judge that compares says in an unscored verdict for each.
    """
    prompts = [Prompt(id=pair.id, text=pair.prompt, source="gold") for pair in pairs]
    outputs = [_output(pair, index) for pair in pairs for index in (0, 1)]
    return judge_outputs(prompts, outputs, judge)


def _output(pair: GoldPair, index: int) -> Output:
    text = (pair.response_1, pair.response_2)[index]
    return Output(
        id=pair.ids[index],
        prompt_id=pair.id,
        index=index,
        prompt_tokens=(),
        tokens=(),
        written=(),
        text=text,
        thought=None,
        response=text,
        format_error=None,
        finish="stop",
    )


def _pair(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> GoldPair:
    values = {name: row.get(columns.get(name, name)) for name in FIELDS}
    prompt, first, second = (_text(values[name], columns.get(name, name), where) for name in TEXTS)
    label, annotators = values["label"], values["annotators"]
    if (label is None) == (annotators is None):
        raise UsageError(f"{where}: a pair needs either label (1 or 2) or annotators (a list of 0, 1 or 2), and not both")
    if label is not None and (isinstance(label, bool) or label not in (1, 2)):
        raise UsageError(f"{where}: label must be 1 or 2, not {label!r}")
    return GoldPair(
        id=content_id("gold", prompt, first, second),
        prompt=prompt,
        response_1=first,
        response_2=second,
        label=label,
        subset=None if values["subset"] is None else _text(values["subset"], "subset", where),
        annotators=() if annotators is None else _people(annotators, where),
    )


def _text(value: object, column: str, where: str) -> str:
    if value is None:
        raise UsageError(f"{where}: there is no {column!r}; if it goes by another name, say so: --columns NAME=COLUMN")
    if not isinstance(value, str | int | float):
        raise UsageError(f"{where}: {column} must be text, not {type(value).__name__}")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: {column} holds half of a surrogate pair, which is not text") from None
    return text


def _people(value: object, where: str) -> tuple[int, ...]:
    winners = value if isinstance(value, list | tuple) else []
    if not winners or any(isinstance(winner, bool) or winner not in (0, 1, 2) for winner in winners):
        raise UsageError(f"{where}: annotators must be a list of 0 (a tie), 1 or 2, one a person, not {value!r}")
    return tuple(winners)


def _kind(pair: GoldPair) -> str:
    return "annotators" if pair.annotators else "a label"
