"""A judge that is a reward model: any `AutoModelForSequenceClassification` of transformers with a single label.

What can go wrong without a word in such code is settled here as follows.
- The chat template is applied once to [user: prompt, assistant: response] and brings its own special tokens; none is added.
  A tokenizer without one gets the two texts as a pair (with a separator token) or as one text with a blank line between.
- A text that spells out a special token ("<|im_end|>") would be tokenised as that token: a response could end its own turn
  and forge others. It is unscored. (Of turn markers that a template writes as plain text nothing can be told.)
- A template that drops or alters a text (some take "<think>" out) leaves the response unscored.
- A conversation longer than the limit loses the end of its *response*; the template's closing tokens stay, because models
  read their score there. The cut is noted in the ruling; a prompt that leaves no room for a response is unscored.
- Rows are padded on the right. A model finds its last token by the pad id of its configuration, so that is what we pad
  with; where there is none, each batch pads with an id that none of its rows holds.
- The score is computed in fp32: a bf16 head has 8 bits, which makes ties.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inward.config import RewardModelJudge
from inward.errors import UsageError
from inward.hardware import device, resolve_dtype
from inward.judging.judge import Group, Ruling

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One conversation as token ids, cut to the limit; `full` is its length before the cut."""

    group: int
    first: int
    tokens: list[int]
    types: list[int] | None
    full: int


class RewardModel:
    """Score = the single logit of a sequence-classification model. Raises `UsageError` where the model is not such a one."""

    def __init__(self, settings: RewardModelJudge) -> None:
        self._settings = settings
        self._device = device()
        self._dtype = resolve_dtype(settings.dtype, self._device)
        self._tokenizer, self._model = _load(settings, self._dtype, self._device)
        self._limit = _limit(settings, self._tokenizer, self._model)
        self._markers = self._find_markers()
        self._pad: int | None = self._model.config.get_text_config().pad_token_id

    @property
    def name(self) -> str:
        """The model with whatever can alter its scores: number format and limit in tokens."""
        return f"reward_model({self._settings.path}, {str(self._dtype).removeprefix('torch.')}, max_tokens={self._limit})"

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        rulings: dict[tuple[int, int], Ruling] = {}
        rows: list[_Row] = []
        for index, group in enumerate(groups):
            for first, response in enumerate(group.responses):
                row = self._row(index, first, group.prompt.text, response)
                if isinstance(row, str):
                    rulings[index, first] = Ruling(first=first, unscored=row)
                else:
                    rows.append(row)
        rows.sort(key=lambda row: (len(row.tokens), row.tokens))  # by content, so that batches do not depend on the order
        for batch in _batches(rows, self._settings.batch_tokens):
            for row, value in zip(batch, self._values(batch), strict=True):
                rulings[row.group, row.first] = _ruling(row, value)
        return [[rulings[index, first] for first in range(len(group.responses))] for index, group in enumerate(groups)]

    def _row(self, group: int, first: int, prompt: str, response: str) -> _Row | str:
        """Return the conversation in tokens, or the reason why it cannot be scored."""
        for name, text in (("prompt", prompt), ("response", response)):
            if marker := self._spelled_out(text):
                return f"the {name} spells out {marker}, a special token of the reward model"
        if self._tokenizer.chat_template is not None:
            shown = self._tokenizer.apply_chat_template(_turns(prompt, response), tokenize=False)
            if prompt.strip() not in shown or response.strip() not in shown:
                return "the reward model's chat template alters the text"
        tokens, types = self._encode(prompt, response)
        full = len(tokens)
        if full > self._limit:
            kept = bisect.bisect_right(
                range(len(response)), self._limit, key=lambda size: len(self._encode(prompt, response[:size])[0])
            )
            if kept <= 1:
                return f"the prompt leaves no room for a response in {self._limit} tokens"
            tokens, types = self._encode(prompt, response[: kept - 1])
        return _Row(group=group, first=first, tokens=tokens, types=types, full=full)

    def _find_markers(self) -> dict[int, str]:
        """Return the tokens that no text may hold: the special ones, and what else the template writes beside plain text."""
        added = self._tokenizer.added_tokens_decoder
        template = self._encode("question", "answer")[0]
        words = {token for token in template if token in added and any(map(str.isalnum, str(added[token])))}  # no line breaks
        return {token: str(entry) for token, entry in added.items() if entry.special or token in words}

    def _spelled_out(self, text: str) -> str | None:
        """Return a marker that `text` holds, as written or once normalised (the unknown token is not one to forge)."""
        found = set(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        found.discard(self._tokenizer.unk_token_id)
        return next((marker for token, marker in self._markers.items() if marker in text or token in found), None)

    def _encode(self, prompt: str, response: str) -> tuple[list[int], list[int] | None]:
        tokenizer = self._tokenizer
        if tokenizer.chat_template is not None:
            shown = tokenizer.apply_chat_template(_turns(prompt, response), tokenize=False)
            return tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"], None
        if tokenizer.sep_token_id is None:
            return tokenizer(f"{prompt}\n\n{response}", verbose=False)["input_ids"], None
        encoded = tokenizer(prompt, response, verbose=False)
        return encoded["input_ids"], encoded.get("token_type_ids")

    def _values(self, rows: Sequence[_Row]) -> list[float]:
        """Score one batch of B rows padded to T tokens."""
        import torch

        pad = _unused_id(rows) if self._pad is None else self._pad
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
            logits = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits
        if logits.numel() != len(rows):
            raise UsageError(f"judge.path {self._settings.path!r} does not give one number a response: it is no reward model")
        values: list[float] = logits.reshape(-1).float().tolist()
        return values


def check(settings: RewardModelJudge) -> None:
    """Look at the model's configuration only: a wrong name shows before anything is sampled. Raises `UsageError`."""
    from transformers import AutoConfig

    with _loading(settings):
        _one_label(settings, AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code))


@contextmanager
def _loading(settings: RewardModelJudge) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(
            f"judge.path {settings.path!r} cannot be loaded as a reward model (a folder or a Hub name is needed): {error}"
        ) from error


def _one_label(settings: RewardModelJudge, config: Any) -> None:
    if config.num_labels != 1:
        raise UsageError(
            f"judge.path {settings.path!r} has {config.num_labels} labels; a reward model has one. "
            "Give a model trained to score."
        )


def _load(settings: RewardModelJudge, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    trust = {"trust_remote_code": settings.trust_remote_code}
    with _loading(settings):
        config = AutoConfig.from_pretrained(settings.path, **trust)
        _one_label(settings, config)
        tokenizer = AutoTokenizer.from_pretrained(settings.path, **trust)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            settings.path, config=config, dtype=dtype, output_loading_info=True, **trust
        )
    if absent := sorted(report["missing_keys"]):
        # transformers would fill these with random numbers and go on: a language model without a score head, most often
        raise UsageError(
            f"judge.path {settings.path!r} has no weights for {', '.join(absent[:3])}: it was not trained as a reward model"
        )
    _score_in_fp32(model)
    return tokenizer, model.to(device).eval()


def _score_in_fp32(model: Any) -> None:
    import torch

    for head in (getattr(model, "score", None), getattr(model, "classifier", None)):
        if isinstance(head, torch.nn.Linear):
            head.float()
            head.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))


def _limit(settings: RewardModelJudge, tokenizer: Any, model: Any) -> int:
    """Return the longest conversation in tokens: the setting, or what the model can take where that is less."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or settings.max_tokens
    return min(settings.max_tokens, int(positions), int(tokenizer.model_max_length))


def _unused_id(rows: Sequence[_Row]) -> int:
    used = {token for row in rows for token in row.tokens}
    return next(token for token in range(len(used) + 1) if token not in used)


def _turns(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _ruling(row: _Row, value: float) -> Ruling:
    detail = json.dumps({"truncated": row.full > len(row.tokens), "tokens": row.full})
    if not math.isfinite(value):
        return Ruling(first=row.first, unscored=f"the reward model gave {value}", detail=detail)
    return Ruling(first=row.first, value=value, detail=detail)


def _batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Cut rows, sorted by length, into batches of at most `batch_tokens` padded tokens (a longer row goes alone)."""
    batch: list[_Row] = []
    for row in rows:
        if batch and len(row.tokens) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
