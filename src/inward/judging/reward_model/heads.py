"""Loading a reward model, and reading one number a response off whatever its head puts out.

Two kinds of head are known. That of transformers' sequence classification puts out `logits`, one number a label. A head that
comes with the model as code (ArmoRM's form) puts out `score` (B,) and, where it rates several objectives, `rewards` (B, N).
- A model's own code is run only where the recipe says so; otherwise the model is refused before any of it is loaded, also
  where transformers would silently fall back on a class of its own and a head of random numbers.
- A head without weights is refused: transformers would fill it with random numbers and go on.
- Everything outside the body is computed in fp32, on hidden states in fp32: a bf16 head has 8 bits, which makes ties.
- Only finite numbers count, which is checked before a sigmoid makes 0 or 1 of an infinity.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import RewardModelJudge
from inward.errors import UsageError
from inward.models.names import config_folder, local_folder

if TYPE_CHECKING:
    import torch

AUTO_CLASS = "AutoModelForSequenceClassification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One of the numbers that a head puts out, and its weight in the score."""

    name: str
    index: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its tokenizer; `own_code` is True where code that came with the model is what runs."""

    tokenizer: Any
    model: Any
    own_code: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A score, or why there is none (the other is None), and the objectives it was made of."""

    value: float | None
    unscored: str | None
    parts: dict[str, float | None]


def model_folder(settings: RewardModelJudge, *, weights: bool = True) -> Path:
    """Return the folder that the model is read from, fetched first where `path` is a Hub name. Raises `UsageError`.

    Without `weights` only its configuration and tokenizer are fetched.
    """
    fetch = local_folder if weights else config_folder
    try:
        return fetch(settings.path, trust_remote_code=settings.trust_remote_code)
    except UsageError as error:
        raise UsageError(
            f"judge.path {settings.path!r} cannot be loaded as a reward model (a folder or a Hub name is needed): {error}"
        ) from error


def check(settings: RewardModelJudge) -> None:
    """Look at the model's configuration, and at its tokenizer if need be: what is wrong shows before anything is sampled.

    Raises `UsageError`.
    """
    from transformers import AutoTokenizer

    folder = model_folder(settings, weights=False)
    _config(settings, folder)
    if settings.input == "chat":
        with _loading(settings):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        _need_template(settings, tokenizer)


def load(settings: RewardModelJudge, dtype: torch.dtype, device: torch.device) -> Loaded:
    """Load the model with its head in fp32. Raises `UsageError` where it is not a reward model or may not be loaded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trust = {"trust_remote_code": settings.trust_remote_code}
    folder = model_folder(settings)
    config, own_code = _config(settings, folder)
    with _loading(settings):
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        _need_template(settings, tokenizer)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **trust
        )
    if absent := sorted(report["missing_keys"]):
        # transformers would fill these with random numbers and go on: a language model without a score head, most often
        raise UsageError(
            f"judge.path {settings.path!r} has no weights for {', '.join(absent[:3])}: it was not trained as a reward model"
        )
    text_config = model.config.get_text_config()
    if getattr(text_config, "use_cache", False):
        text_config.use_cache = False  # nothing is generated: keys and values would only take room
    _head_in_fp32(model)
    return Loaded(tokenizer=tokenizer, model=model.to(device).eval(), own_code=own_code)


def resolve(settings: RewardModelJudge, config: Any, count: int) -> tuple[Objective, ...]:
    """Return the objectives that the recipe names among the `count` numbers of a head; none where it has only one.

    Raises `UsageError` for a name that is none of the model's, with the nearest one, and where it needs objectives or cannot.
    """
    labels = dict(getattr(config, "id2label", None) or {})
    names = [str(labels.get(index, index)) for index in range(count)] if len(labels) == count else []
    offered = ", ".join(names) if names else f'"0" to "{count - 1}"'
    if count == 1 and settings.objectives:
        raise UsageError(
            f"judge.objectives weighs {len(settings.objectives)} objectives, but judge.path {settings.path!r} gives one number "
            "a response. Take judge.objectives out."
        )
    if count > 1 and not settings.objectives:
        raise UsageError(
            f"judge.path {settings.path!r} has {count} labels ({offered}); without weights a reward model has one. "
            "Set judge.objectives to their weights, or give a model trained to score."
        )
    objectives: dict[int, Objective] = {}
    for name, weight in settings.objectives.items():
        index = names.index(name) if name in names else int(name) if name.isdecimal() and int(name) < count else None
        if index is None:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {offered}."
            raise UsageError(f"judge.objectives names {name!r}, which judge.path {settings.path!r} does not have; {hint}")
        if index in objectives:
            raise UsageError(f"judge.objectives names {objectives[index].name!r} and {name!r}, which are the same objective")
        objectives[index] = Objective(name=name, index=index, weight=weight)
    return tuple(objectives.values())


def numbers(settings: RewardModelJudge, output: Any, rows: int) -> torch.Tensor:
    """Return what a head put out for `rows` responses as [rows, N]: `rewards` or `logits` if objectives are weighed, else
    `score` or `logits`. Raises `UsageError` where it is of another form.
    """
    import torch

    names = ("rewards", "logits") if settings.objectives else ("score", "logits")
    name = next((name for name in names if isinstance(getattr(output, name, None), torch.Tensor)), None)
    if name is None:
        raise UsageError(f"judge.path {settings.path!r} puts out neither {names[0]} nor {names[1]}: it is no reward model")
    tensor: torch.Tensor = getattr(output, name)
    shape = tuple(tensor.shape)
    several = name != "score"
    if shape[:1] != (rows,) or len(shape) > 2 or (len(shape) == 2 and shape[1] != 1 and not several):
        expected = f"({rows}, objectives)" if settings.objectives else f"({rows},)"
        raise UsageError(
            f"judge.path {settings.path!r} puts out {name} of shape {shape} for {rows} responses instead of {expected}: "
            "it does not give one number a response"
        )
    return tensor.reshape(rows, -1)


def readings(settings: RewardModelJudge, objectives: Sequence[Objective], numbers_BN: torch.Tensor) -> list[Reading]:
    """Return one reading a row: its only number, or the weighted sum of its objectives, made a share if the recipe says so."""
    return [_reading(settings, objectives, row) for row in numbers_BN.double().tolist()]


def _reading(settings: RewardModelJudge, objectives: Sequence[Objective], row: list[float]) -> Reading:
    parts = {objective.name: row[objective.index] for objective in objectives}
    shown = {name: part if math.isfinite(part) else None for name, part in parts.items()}
    wrong = [f"{part} for {name}" for name, part in parts.items() if not math.isfinite(part)]
    value = sum(objective.weight * parts[objective.name] for objective in objectives) if parts else row[0]
    if wrong or not math.isfinite(value):
        return Reading(value=None, unscored=f"the reward model gave {', '.join(wrong) or value}", parts=shown)
    return Reading(value=_sigmoid(value) if settings.output == "sigmoid" else value, unscored=None, parts=shown)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def _config(settings: RewardModelJudge, folder: Path) -> tuple[Any, bool]:
    """Return the configuration and whether the model brings the code of its head. Raises `UsageError`, running no code."""
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with _loading(settings):
        raw, _ = PreTrainedConfig.get_config_dict(folder)
    code = raw.get("auto_map") or {}
    needed = AUTO_CLASS if AUTO_CLASS in code else "AutoConfig" if raw.get("model_type") not in CONFIG_MAPPING else None
    if needed in code and not settings.trust_remote_code:
        raise UsageError(
            f"judge.path {settings.path!r} comes with code of its own ({code[needed]}), which is not run unless you allow it. "
            "Read that code; if you trust it, set judge.trust_remote_code = true"
        )
    with _loading(settings):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    if AUTO_CLASS not in code:
        resolve(settings, config, config.num_labels)
    return config, AUTO_CLASS in code


@contextmanager
def _loading(settings: RewardModelJudge) -> Iterator[None]:
    from safetensors import SafetensorError

    # a model that is not there or has another form; and, where a model's own code runs, what such code most often raises
    expected: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)
    if settings.trust_remote_code:
        expected += (AttributeError, KeyError, SyntaxError, TypeError)
    try:
        yield
    except expected as error:
        hint = " (code that comes with a model may need another version of transformers)" if settings.trust_remote_code else ""
        raise UsageError(
            f"judge.path {settings.path!r} cannot be loaded as a reward model (a folder or a Hub name is needed): {error}{hint}"
        ) from error


def _need_template(settings: RewardModelJudge, tokenizer: Any) -> None:
    if settings.input == "chat" and tokenizer.chat_template is None:
        raise UsageError(f"judge.input is 'chat', but judge.path {settings.path!r} has no chat template: set it to 'pair'")


def _head_in_fp32(model: Any) -> None:
    """Put all that stands outside the model's body into fp32, and have it get the body's results in fp32."""
    import torch

    body = model.base_model
    if body is model or model.dtype == torch.float32:
        return
    heads = [child for child in model.children() if child is not body]
    for tensor in (*model.parameters(recurse=False), *model.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for head in heads:
        head.float()
    body.register_forward_hook(lambda _, __, output: _results_in_fp32(output))


def _results_in_fp32(output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0].float(), *output[1:])
    for name in ("last_hidden_state", "pooler_output"):
        if getattr(output, name, None) is not None:
            output[name] = output[name].float()
    return output
