"""The whole tree, and how a recipe file becomes one: every error says which key and what to do."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from inward.config.audit import JudgeLimits
from inward.config.base import Arm, Dtype, EngineKind, Harmless, Settings
from inward.config.combined import COMBINED, CascadeJudge, JudgeSettings, RoutedJudge
from inward.config.engines import EndpointEngineSettings, EngineOptions, VllmSettings
from inward.config.pairing import PairingSettings
from inward.config.prompts import PromptSettings, ThoughtSettings
from inward.config.training import TrainingSettings
from inward.errors import UsageError
from inward.thought import BUILT_IN, ThoughtFormat


class ModelSettings(Settings):
    """The seed model M_0: a folder, a GGUF file, a Hub name, or the name of an embedded model (`smollm2`).

    `revision` is a Hub model's branch, tag or commit.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False


class SamplingSettings(Settings):
    """How outputs are drawn. `top_k` cuts the candidates before top-p, so that the vocabulary is never sorted whole.

    `engine` is what runs the model, and `rows` how many outputs it draws side by side (unset: 128; with engine "transformers"
    on a GPU as many as its free memory holds at full length, up to 1,024). `cut_off_responses` says what becomes of
    a response that `max_new_tokens` cut off: with "reject" it is a format error, which is not judged and can only be rejected,
    with "allow" a response like any other. Where models are measured it is always judged. `vllm` and `endpoint` are the tables
    of the engines of these names.
    """

    engine: EngineKind = "transformers"
    k: int = Field(default=8, ge=2)
    temperature: float = Field(default=0.8, gt=0.0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    top_k: int = Field(default=256, gt=0)
    max_new_tokens: int = Field(default=1024, gt=0)
    cut_off_responses: Literal["reject", "allow"] = "reject"
    rows: int | None = Field(default=None, gt=0)
    vllm: Annotated[VllmSettings, Harmless()] = VllmSettings()
    endpoint: Annotated[EndpointEngineSettings | None, Harmless()] = None

    @model_validator(mode="after")
    def _has_servers(self) -> Self:
        if self.engine == "endpoint" and self.endpoint is None:
            raise ValueError("sampling.engine = 'endpoint' needs sampling.endpoint.servers: the addresses of the servers")
        return self

    @property
    def engine_options(self) -> EngineOptions | None:
        """The table of the chosen engine's own settings; None for an engine that has none."""
        return {"vllm": self.vllm, "endpoint": self.endpoint}.get(self.engine)


class ValidationSettings(Settings):
    """How models are compared: fresh samples per prompt, a format error sampled again up to `tries` times in all.

    `judge` is the recipe's own unless set. It must put all models on one scale: no cascade and no panel, and a routed one only
    if all its judges score in one range (verifiable ones and reward models with output "sigmoid" score from 0 to 1). With a
    pairwise judge a model's score is how often its responses win against `baseline`: the seed's direct answers to the same
    prompts, or those of a JSON-lines file with `prompt` and `response` in each line.

    Only every `every`-th iteration and the last one are validated; between them the last checkpoint goes on.
    """

    judge: JudgeSettings | None = None
    baseline: str | None = None
    samples: int = Field(default=1, gt=0)
    tries: int = Field(default=3, gt=0)
    temperature: float = Field(default=0.8, gt=0.0)
    bootstrap: int = Field(default=2000, gt=0)
    every: int = Field(default=1, gt=0)


class ExecutionSettings(Settings):
    """How work is cut and run.

    `shard_prompts` is the most prompts of a shard, which is what a kill can lose. `workers` processes (unset: one for each
    accelerator, or one) share the shards of sampling and of a judge that is a model, each with a device or a part of the
    processor's threads. `processes` share every step of training (unset: one a GPU, or one), each with a model of its own
    and its part of the threads; with `shard` each holds only its part of the weights, gradients and moments (FSDP2), for
    models that one GPU cannot train. `isolate` has models held by processes other than the run's own (unset: where there is
    an accelerator). `threads` is per process. With `keep_models` only the models of so many of the latest iterations are
    kept, and of earlier ones the best and the last that were validated; their records stay. `ray` is the address of a Ray
    cluster, HOST:PORT or "auto", whose nodes then do the work: a worker has an accelerator, or as many CPUs as `threads` says
    (unset: its part of a node; `workers` unset: one for each accelerator of the cluster, or one a node), and trains under
    Ray Train.
    """

    shard_prompts: int = Field(default=64, gt=0)
    workers: int | None = Field(default=None, gt=0)
    processes: int | None = Field(default=None, gt=0)
    shard: bool = False
    isolate: bool | None = None
    threads: int | None = Field(default=None, gt=0)
    keep_models: int | None = Field(default=None, gt=0)
    ray: str | None = Field(default=None, min_length=1)


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
    judge_limits: Annotated[JudgeLimits, Harmless()] = JudgeLimits()
    pairing: PairingSettings = PairingSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    execution: Annotated[ExecutionSettings, Harmless()] = ExecutionSettings()

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
        if self.training.response_weight == 0 and "direct" in self.arms:
            raise ValueError(
                "training.response_weight = 0 leaves nothing to learn in the direct arm, which has no thoughts: "
                "leave 'direct' out of arms"
            )
        mixed = isinstance(self.judge, CascadeJudge | RoutedJudge)
        if mixed and self.pairing.min_gap > 0:
            raise ValueError(
                f"pairing.min_gap is a gap of the judge's own scores, and with judge.kind = {self.judge.kind!r} these have "
                "another scale from prompt to prompt: leave pairing.min_gap out"
            )
        if why := self.validation_judge.incomparable:
            key = "judge" if self.validation.judge is None else "validation.judge"
            needs = " needs validation.judge" if key == "judge" else " cannot compare models"
            raise ValueError(
                f"{key}.kind = {self.validation_judge.kind!r}{needs}: {why}. Set validation.judge to a verifiable judge, a "
                "reward model or a pairwise judge, to compare checkpoints by"
            )
        if self.validation.baseline is not None and self.validation_judge.battle_prior is None:
            raise ValueError(
                "validation.baseline is what a pairwise judge compares answers with, and the judge of the validation, of kind "
                f"{self.validation_judge.kind!r}, scores each by itself: leave validation.baseline out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_cut(self) -> Self:
        if self.execution.shard and self.training.optimiser == "adamw_8bit":
            raise ValueError(
                "execution.shard does not go with training.optimiser = 'adamw_8bit', which scales moments by blocks of whole "
                "weights: use 'adamw', whose moments are then shared out among the processes"
            )
        if self.execution.shard and self.training.quantise:
            raise ValueError(
                f"execution.shard does not go with training.lora.quantise_base = '{self.training.quantise}': packed matrices "
                "have no rows to share out. Leave one of the two out"
            )
        return self

    @property
    def validation_judge(self) -> JudgeSettings:
        """The judge that models are compared by."""
        return self.validation.judge or self.judge

    def validates(self, t: int) -> bool:
        """Say whether the models of iteration `t` are validated."""
        return t % self.validation.every == 0 or t == self.iterations

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
        elif item["type"] == "union_tag_invalid" and item["ctx"]["tag"] in COMBINED:
            outer = next(n for n, part in enumerate(parts) if part in COMBINED)
            key = ".".join(parts[:outer] + parts[outer + 1 :])
            lines.append(
                f"{key}.kind = {item['ctx']['tag']!r} stands inside {'.'.join(parts[:outer])}.kind = {parts[outer]!r}: judges "
                f"are combined one level deep; make {key} a judge of kind {item['ctx']['expected_tags']}"
            )
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
        classes = _settings_in(field.annotation) if field else []
        if len(classes) != 1:
            return sorted({name for cls in _all_settings(Settings) for name in cls.model_fields})
        model = classes[0]
    return list(model.model_fields)


def _all_settings(parent: type[BaseModel]) -> list[type[BaseModel]]:
    return [cls for child in parent.__subclasses__() for cls in (child, *_all_settings(child))]


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for arg in getattr(annotation, "__args__", ()) for cls in _settings_in(arg)]
