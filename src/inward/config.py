"""The one tree of settings. A recipe is a TOML file that parses into `Recipe`; every field below can stand in it.

Unknown keys are refused with the nearest known one. Contradictions name both keys. Nothing here imports a heavy package.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inward.errors import UsageError
from inward.thought import BUILT_IN, ThoughtFormat, Turn

Arm = Literal["thinking", "direct"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
VerdictForm = Literal["ab", "abc", "arena"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(Settings):
    """The seed model M_0: a folder, a Hub name, or the name of an embedded model (`smollm2`).

    `revision` is a Hub model's branch, tag or commit.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False


class FileSource(Settings):
    """Prompts from a JSON-lines or Parquet file. `columns` maps our field names to the file's column names."""

    kind: Literal["file"]
    path: str
    columns: dict[str, str] = {}


class DatasetSource(Settings):
    """Prompts from a Hugging Face dataset: a Hub name, or a folder (`save_to_disk` or data files)."""

    kind: Literal["dataset"]
    path: str
    name: str | None = None
    split: str = "train"
    columns: dict[str, str] = {}


class TaskSource(Settings):
    """Verifiable tasks made on the spot: `count` of them, each with up to `max_constraints` checkable constraints."""

    kind: Literal["tasks"]
    count: int = Field(gt=0)
    seed: int = 0
    max_constraints: int = Field(default=3, ge=1, le=3)


PromptSource = Annotated[FileSource | DatasetSource | TaskSource, Field(discriminator="kind")]


class PromptSettings(Settings):
    """Where instructions come from and how many are used. Validation prompts are set apart before any iteration draws.

    `unusable` says what to do with an empty, a duplicate or a too long prompt: stop, or drop it and report the count.
    """

    sources: tuple[PromptSource, ...] = Field(min_length=1)
    per_iteration: int = Field(default=5000, gt=0)
    validation: int = Field(default=1500, gt=0)
    max_tokens: int = Field(default=2048, gt=0)
    unusable: Literal["error", "drop"] = "error"


class ScaffoldSettings(Settings):
    """Two-phase decoding: the engine writes the markers, the model thinks for at most `budget` tokens in between."""

    budget: int = Field(default=256, gt=0)


class ThoughtSettings(Settings):
    """The thought format of the thinking arm: a built-in by name, or a custom one when `template` is given."""

    format: str = "generic"
    template: str | None = None
    thought_marker: str = ""
    response_marker: str = ""
    turn: Turn = "user"
    scaffold: ScaffoldSettings | None = None

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        if self.template is None:
            if self.thought_marker or self.response_marker:
                raise ValueError("thought.thought_marker/response_marker are set without thought.template")
            if self.format not in BUILT_IN:
                raise ValueError(
                    f"thought.format {self.format!r} is none of {', '.join(BUILT_IN)}; "
                    "give thought.template and thought.response_marker to define it"
                )
            if self.turn == "system":
                raise ValueError("thought.turn = 'system' needs thought.template: the built-in formats are user turns")
        if not self.resolve().thinks:
            raise ValueError("thought.format has no response marker: that is the direct arm, which needs no format")
        return self

    def resolve(self) -> ThoughtFormat:
        if self.template is None:
            return BUILT_IN[self.format]
        try:
            return ThoughtFormat(self.format, self.template, self.thought_marker, self.response_marker, self.turn)
        except UsageError as error:
            raise ValueError(str(error)) from error


class SamplingSettings(Settings):
    """How outputs are drawn. `top_k` cuts the candidates before top-p, so that the vocabulary is never sorted whole."""

    k: int = Field(default=8, ge=2)
    temperature: float = Field(default=0.8, gt=0.0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    top_k: int = Field(default=256, gt=0)
    max_new_tokens: int = Field(default=1024, gt=0)
    rows: int = Field(default=128, gt=0)


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible server: `base_url` is what its `/chat/completions` is appended to (`.../v1`).

    `key_env` names the environment variable that holds the key; the key itself stands nowhere. `retries` are those of one
    request, after the first try; `timeout_s` is for the whole of a try. Prices are per million tokens, read and written.
    """

    base_url: str
    model: str
    key_env: str | None = None
    concurrency: int = Field(default=16, gt=0)
    timeout_s: float = Field(default=300.0, gt=0.0)
    retries: int = Field(default=6, ge=0)
    price_in: float = Field(default=0.0, ge=0.0)
    price_out: float = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        try:
            url = urlsplit(self.base_url)
            _ = url.port  # checked when it is read
        except ValueError as error:
            raise ValueError(f"endpoint.base_url is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("endpoint.base_url must begin with http:// or https:// and a host")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError("endpoint.base_url holds more than scheme, host and path: a key belongs into endpoint.key_env")
        if self.key_env is not None and not self.key_env.isidentifier():
            raise ValueError("endpoint.key_env must be the name of an environment variable, never the key itself")
        return self


class VerifiableJudge(Settings):
    """Score = share of a prompt's constraints that the response meets, or 1/0 for an exact answer. No model."""

    kind: Literal["verifiable"]
    strictness: Literal["strict", "loose", "mean"] = "strict"


class RewardModelJudge(Settings):
    """Score = the scalar of a sequence-classification model. A pair longer than `max_tokens` is cut and counted."""

    kind: Literal["reward_model"]
    path: str
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    max_tokens: int = Field(default=4096, gt=0)
    batch_tokens: int = Field(default=16384, gt=0)


class PairwiseJudge(Settings):
    """A language model that compares two responses: the model at `path` in this process, or one behind `endpoint`.

    Scores are Bradley-Terry strengths, with a normal prior of precision `prior`, of the battles that `scheme` asks for: all,
    or only what it takes to know best and worst at `confidence`. `form` offers two verdicts, a tie too, or Arena-Hard's five
    levels; an answer longer than `max_tokens` is an error. `turn` says where the judge's task stands, for models without a
    system turn; `rows` answers are drawn side by side. Such scores compare responses to one prompt from one model only, so
    `validation.judge` must name another judge.
    """

    kind: Literal["pairwise"]
    path: str | None = None
    endpoint: EndpointSettings | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    rows: int = Field(default=32, gt=0)
    form: VerdictForm = "ab"
    turn: Turn = "system"
    max_tokens: int = Field(default=2048, gt=0)
    scheme: Literal["adaptive", "full"] = "adaptive"
    confidence: float = Field(default=0.87, gt=0.0, lt=1.0)
    prior: float = Field(default=0.4, gt=0.0)

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.path is None) == (self.endpoint is None):
            raise ValueError("judge.kind = 'pairwise' needs exactly one of judge.path (a model here) and judge.endpoint")
        return self


PointwiseJudge = Annotated[VerifiableJudge | RewardModelJudge, Field(discriminator="kind")]
JudgeSettings = Annotated[VerifiableJudge | RewardModelJudge | PairwiseJudge, Field(discriminator="kind")]


class PairingSettings(Settings):
    """Scores to pairs. `rho` is the length control; `format_errors` the largest share of pairs with a malformed reject.

    `rho` is a number from 0 to 0.5, or "auto": the smallest of 0, 0.01, ... `rho_max` with which the chosen responses are on
    average no longer than the rejected ones. Lengths are in characters. `thought_weight` is the same control of thoughts.
    """

    rho: Annotated[float, Field(ge=0.0, le=0.5)] | Literal["auto"] = 0.0
    rho_max: float = Field(default=0.5, gt=0.0, le=0.5)
    thought_weight: float = Field(default=0.0, ge=0.0)
    format_errors: float = Field(default=0.1, ge=0.0, le=1.0)
    min_gap: float = Field(default=0.0, ge=0.0)


class LoraSettings(Settings):
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = None  # None: every linear layer but the head


class TrainingSettings(Settings):
    """DPO or IRPO from M_t. The reference is the model that sampled, M_t ("previous"), as in the method, or M_0 ("seed").

    `batch_pairs` pairs make one optimiser step; `nll_weight` is IRPO's alpha (1 unless given); tokens that the engine
    wrote while scaffolding are masked unless `learn_written`. A state to resume from is saved every `save_steps` steps.
    """

    objective: Literal["dpo", "irpo"] = "dpo"
    reference: Literal["previous", "seed"] = "previous"
    beta: float = Field(default=0.1, gt=0.0)
    nll_weight: float | None = Field(default=None, ge=0.0)
    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(default=5e-7, gt=0.0)
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    batch_pairs: int = Field(default=16, gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    save_steps: int = Field(default=50, gt=0)
    learn_written: bool = False
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.objective == "dpo" and self.nll_weight is not None:
            raise ValueError("training.nll_weight is set but training.objective = 'dpo' has no NLL term: use 'irpo'")
        return self


class ValidationSettings(Settings):
    """How models are compared: fresh samples per prompt, a format error sampled again up to `tries` times in all.

    `judge` is the recipe's own unless set. It must score on one scale for all models, so it cannot be a pairwise one.
    """

    judge: PointwiseJudge | None = None
    samples: int = Field(default=1, gt=0)
    tries: int = Field(default=3, gt=0)
    temperature: float = Field(default=0.8, gt=0.0)
    bootstrap: int = Field(default=2000, gt=0)


class ExecutionSettings(Settings):
    """How work is cut and run.

    `workers` processes share the shards of sampling and of a judge that is a model, the processor's threads divided among
    them. `isolate` gives every stage a process of its own (unset: where there is an accelerator). `threads` is per process.
    """

    shard_prompts: int = Field(default=64, gt=0)
    workers: int = Field(default=1, gt=0)
    isolate: bool | None = None
    threads: int | None = Field(default=None, gt=0)


class Recipe(Settings):
    """Everything a run depends on."""

    seed: int = 0
    iterations: int = Field(default=4, gt=0)
    arms: tuple[Arm, ...] = Field(default=("thinking", "direct"), min_length=1)
    model: ModelSettings
    prompts: PromptSettings
    thought: ThoughtSettings = ThoughtSettings()
    sampling: SamplingSettings = SamplingSettings()
    judge: JudgeSettings
    pairing: PairingSettings = PairingSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    execution: ExecutionSettings = ExecutionSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError("arms names the same arm twice")
        scaffold = self.thought.scaffold
        if scaffold and scaffold.budget >= self.sampling.max_new_tokens:
            raise ValueError(
                f"thought.scaffold.budget ({scaffold.budget}) leaves no room for a response: "
                f"it must be below sampling.max_new_tokens ({self.sampling.max_new_tokens})"
            )
        if isinstance(self.judge, PairwiseJudge) and self.validation.judge is None:
            raise ValueError(
                "judge.kind = 'pairwise' needs validation.judge: battles rank the responses to one prompt and put no two "
                "models on one scale. Set validation.judge to a verifiable judge or a reward model, to compare checkpoints by"
            )
        return self

    @property
    def validation_judge(self) -> VerifiableJudge | RewardModelJudge:
        """The judge that models are compared by."""
        found = self.validation.judge or self.judge
        assert not isinstance(found, PairwiseJudge), "refused when the recipe was read"
        return found

    def thought_format(self, arm: Arm) -> ThoughtFormat:
        return self.thought.resolve() if arm == "thinking" else BUILT_IN["direct"]


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `key.sub=value` overrides (values in TOML, bare words as strings), and check it whole."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist; `inward recipes` lists the shipped ones") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    for override in overrides or []:
        _apply(tree, override)
    return parse_recipe(tree, origin=str(path))


def parse_recipe(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(tree, default=str))  # JSON mode: lists may stand for tuples
    except ValidationError as error:
        raise UsageError(f"{origin}:\n" + "\n".join(f"  {line}" for line in _explain(error))) from None


def recipe_json(recipe: Recipe) -> str:
    """Return the resolved recipe as stable JSON: what `config.json` holds and what a resumed run is compared with."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"override {override!r} must have the form key.sub=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"override {override!r}: {parent!r} is not a table in the recipe")
        node = child
    node[last] = value


def _explain(error: ValidationError) -> list[str]:
    lines = []
    items = error.errors()
    for item in items:
        inner = [other for other in items if len(other["loc"]) > len(item["loc"])]
        if item["type"] == "too_short" and any(other["loc"][: len(item["loc"])] == item["loc"] for other in inner):
            continue  # the list is only empty because its items are wrong, which is said already
        parts = [str(part) for part in item["loc"]]
        where = ".".join(parts)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], _known_keys(parts[:-1]), n=1, cutoff=0.5)
            lines.append(f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif item["type"] == "missing":
            lines.append(f"{where} is required")
        elif item["type"] == "value_error":
            lines.append(str(item["ctx"]["error"]))
        else:
            lines.append(f"{where}: {item['msg']} (it is {item['input']!r})")
    return lines


def _known_keys(path: list[str]) -> list[str]:
    """Field names that could stand at `path`: those of the settings class there, or of all classes for a union."""
    model: type[BaseModel] = Recipe
    for part in path:
        field = model.model_fields.get(part)
        found = _settings_in(field.annotation) if field else []
        if len(found) != 1:
            return sorted({name for cls in Settings.__subclasses__() for name in cls.model_fields})
        model = found[0]
    return list(model.model_fields)


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for arg in getattr(annotation, "__args__", ()) for cls in _settings_in(arg)]
