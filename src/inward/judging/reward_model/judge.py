"""A judge that is a reward model: any `AutoModelForSequenceClassification` of transformers, or one with its own head.

What it reads is made in `conversations`, what its head puts out is read in `heads`, and each prompt is read once for all its
responses by `prefix` where the model allows it. Here they meet: rows sorted by length, in batches of so many padded
tokens.
- Rows are padded on the right. A model finds its last token by the pad id of its configuration, so that is what we pad with;
  where there is none, each batch pads with an id that none of its rows holds.
from inward.judging.spending import Spending, Tally
from inward.models.architectures import position_limit
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from inward.config import RewardModelJudge
from inward.errors import UsageError
from inward.hardware import device, resolve_dtype
from inward.judging.judge import Group, Ruling
from inward.judging.reward_model import heads as reward_heads
from inward.judging.reward_model import prefix as reward_prefix
from inward.judging.reward_model.conversations import Conversations, Family, Row, batches, by_content, families, unused_id
from inward.judging.reward_model.heads import Reading
from inward.judging.spending import Spending, Tally
from inward.models.architectures import position_limit
from inward.records import Prompt

if TYPE_CHECKING:
    import torch

TRIAL = (
    ("What is a fen, and how does it differ from a bog?", ("It is fed by ground water, a bog by rain.", "I do not know.")),
    ("Name a river.", ("The Elbe.", "The Elbe, which rises in the Giant Mountains and ends in the North Sea.")),
)
ROUNDING = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.15}
"""How far two correct computations of the same number may lie apart, as a share of its size. A wrong one is far beyond it."""


class RewardModel:
    """Score = the number of a model's head. `today` is the date for a chat template that writes one: the present date unless
    given. Raises `UsageError` where the model is not such a one.
    """

    def __init__(self, settings: RewardModelJudge, *, today: date | None = None) -> None:
        self._settings = settings
        self._device = device()
        self._dtype = resolve_dtype(settings.dtype, self._device)
        self._tally = Tally()
        loaded = reward_heads.load(settings, self._dtype, self._device)
        self._model = loaded.model
        context = _context(loaded.tokenizer, loaded.model)
        self.conversations = Conversations(loaded.tokenizer, min(settings.max_tokens, context), settings.input, today=today)
        self._pad: int | None = self._model.config.get_text_config().pad_token_id
        trial = by_content([row for n in range(len(TRIAL)) for row in self.conversations.trial(n, *TRIAL[n], context)])
        numbers_BN = self._try(trial)
        self._objectives = reward_heads.resolve(settings, self._model.config, numbers_BN.shape[1])
        positions = position_limit(self._model.config)
        self._positions_vary = positions is not None and self.conversations.limit > positions
        self._even = self._positions_vary or (loaded.own_code and self._padding_matters(trial, numbers_BN))
        self.why_unshared = self._why_unshared(trial)

    @property
    def name(self) -> str:
        """The model with whatever can alter its scores: number format, limit in tokens, form of input and output, weights."""
        settings, dtype = self._settings, str(self._dtype).removeprefix("torch.")
        parts = [settings.path, dtype, f"max_tokens={self.conversations.limit}"]
        parts += [settings.input] if settings.input != "auto" else []
        parts += [" ".join(f"{weight:+} {name}" for name, weight in settings.objectives.items())] if settings.objectives else []
        parts += [settings.output] if settings.output != "raw" else []
        parts += ["prompts read once"] if self.why_unshared is None and dtype != "float32" else []
        return f"reward_model({', '.join(parts)})"

    def costs(self) -> Spending:
        """Return the tokens read, of conversations as they were cut; nothing is written."""
        return self._tally.read()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        rulings: dict[tuple[int, int], Ruling] = {}
        rows: list[Row] = []
        for index, group in enumerate(groups):
            for first, response in enumerate(group.responses):
                row = self.conversations.row(index, first, group.prompt.text, response)
                if isinstance(row, str):
                    rulings[index, first] = Ruling(first=first, unscored=row)
                else:
                    rows.append(row)
        self._tally.add(Spending(answers=len(rows), prompt_tokens=sum(len(row.tokens) for row in rows)))
        for row, reading in self._read(rows):
            rulings[row.group, row.first] = _ruling(row, reading)
        return [[rulings[index, first] for first in range(len(group.responses))] for index, group in enumerate(groups)]

    def _read(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Reading]]:
        shared, others = families(rows) if self.why_unshared is None else ([], by_content(rows))
        for numbers_BN, batch in self._numbers(shared, others):
            yield from zip(batch, reward_heads.readings(self._settings, self._objectives, numbers_BN), strict=True)

    def _numbers(self, shared: Sequence[Family], others: Sequence[Row]) -> Iterator[tuple[torch.Tensor, list[Row]]]:
        """Yield what the head puts out, batch by batch: first for rows that share a prompt, then for all others."""
        budget = self._settings.batch_tokens
        for some in batches(shared, budget, lambda family: (0, family.size)):
            prompts = self._prompts(some)
            ends = [(number, family.size, row) for number, family in enumerate(some) for row in family.rows]
            ends.sort(key=lambda end: (len(end[2].tokens) - end[1], end[2].tokens))
            for batch in batches(ends, budget, lambda end: (end[1], len(end[2].tokens) - end[1])):
                rows = [row for _, _, row in batch]
                sizes = [len(row.tokens) for row in rows]
                with reward_prefix.continuing(self._model.base_model, prompts, [number for number, _, _ in batch], sizes):
                    numbers_BN = self._forward(rows)
                yield numbers_BN, rows
        for rows in batches(others, budget, lambda row: (0, len(row.tokens)), even=self._even):
            yield self._forward(rows), rows

    def _prompts(self, some: Sequence[Family]) -> reward_prefix.Prompts:
        import torch

        with torch.inference_mode():
            return reward_prefix.read_prompts(self._model.base_model, some)

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return what the head puts out for one batch of B rows padded to T tokens: [B, N]."""
        import torch

        pad = unused_id(rows) if self._pad is None else self._pad
        self._model.config.get_text_config().pad_token_id = pad  # the model looks for its last token by this
        width = max(len(row.tokens) for row in rows)
        tokens_BT = torch.full((len(rows), width), pad)
        mask_BT = torch.zeros_like(tokens_BT)
        types_BT = torch.zeros_like(tokens_BT)
        for index, row in enumerate(rows):
            size = len(row.tokens)
            tokens_BT[index, :size] = torch.tensor(row.tokens)
            mask_BT[index, :size] = 1
            if row.types is not None:
                types_BT[index, :size] = torch.tensor(row.types)
        inputs = {"input_ids": tokens_BT, "attention_mask": mask_BT}
        if rows[0].types is not None:
            inputs["token_type_ids"] = types_BT
        with torch.inference_mode():
            output = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()})
        return reward_heads.numbers(self._settings, output, len(rows))

    def _try(self, trial: Sequence[Row]) -> torch.Tensor:
        """Return what the head puts out for the trial. Raises `UsageError` where a head of the model's own code fails."""
        try:
            return self._forward(trial)
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            cure = " (set judge.dtype = 'float32' if it is about number formats)" if self._dtype.itemsize < 4 else ""
            raise UsageError(
                f"judge.path {self._settings.path!r} cannot score an ordinary conversation: {error}{cure}"
            ) from error

    def _padding_matters(self, trial: Sequence[Row], padded_BN: torch.Tensor) -> bool:
        """Say whether rows alone get other numbers than rows in a padded batch, measured by how much the rows differ."""
        import torch

        alone_BN = torch.cat([self._forward([row]) for row in trial])
        spread = float((alone_BN - alone_BN.mean(0)).norm())
        return not float((alone_BN - padded_BN).norm()) <= self._rounding * spread + 1e-6

    def _why_unshared(self, trial: list[Row]) -> str | None:
        """Return why prompts are not read once for all their responses, or None where they are."""
        if not self._settings.share_prompts:
            return "judge.share_prompts is false"
        body = self._model.base_model
        if body is self._model or trial[0].types is not None:
            return "it is an encoder, or its body cannot be told from its head"
        if self._positions_vary:
            return "its positions depend on the longest conversation of a batch"
        if self._even:
            return "padding changes its scores"
        shared, others = families(trial)
        if not shared:
            return "its prompts are too short"

        def run(apart: bool) -> torch.Tensor:
            import torch

            seen: list[torch.Tensor] = []
            hook = body.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state.float()))
            try:
                got = list(self._numbers(shared, others) if apart else self._numbers([], trial))
            finally:
                hook.remove()
            if len(got) != len(seen):
                raise reward_prefix.Unshareable("its head does not call its body once")
            rows = [row for _, batch in got for row in batch]
            hidden = [part for batch in seen for part in batch]
            placed = {(row.group, row.first): part[: len(row.tokens)] for row, part in zip(rows, hidden, strict=True)}
            return torch.cat([placed[key] for key in sorted(placed)])

        return reward_prefix.why_unshared(body, self._model.config.get_text_config(), run, self._rounding)

    @property
    def _rounding(self) -> float:
        return ROUNDING[str(self._dtype).removeprefix("torch.")]


def load(settings: RewardModelJudge, *, rho: float, today: date) -> RewardModel:
    """Return the judge, its model loaded. `rho` alters nothing: each response is scored by itself."""
    return RewardModel(settings, today=today)


def check(settings: RewardModelJudge, prompts: Iterable[Prompt]) -> None:
    """Look at the model's configuration only: a wrong name shows before anything is sampled. Raises `UsageError`."""
    reward_heads.check(settings)


def _context(tokenizer: Any, model: Any) -> int:
    """Return the longest conversation in tokens that the model can take."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(int(positions or tokenizer.model_max_length), int(tokenizer.model_max_length))


def _ruling(row: Row, reading: Reading) -> Ruling:
    detail: dict[str, Any] = {"truncated": row.full > len(row.tokens), "tokens": row.full}
    if reading.parts:
        detail["objectives"] = reading.parts
    return Ruling(first=row.first, value=reading.value, unscored=reading.unscored, detail=json.dumps(detail))
