"""Where prompts come from, and the thought format that frames them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inward.config.base import Settings
from inward.errors import UsageError
from inward.thought import BUILT_IN, ThoughtFormat, Turn


class FileSource(Settings):
    """Prompts from a JSON-lines or Parquet file. `columns` maps our field names to the file's column names."""

    kind: Literal["file"]
    path: str
    columns: dict[str, str] = Field(default={})


class DatasetSource(Settings):
    """Prompts from a Hugging Face dataset: a Hub name, or a folder (`save_to_disk` or data files)."""

    kind: Literal["dataset"]
    path: str
    name: str | None = None
    split: str = "train"
    columns: dict[str, str] = Field(default={})


class TaskSource(Settings):
    """Verifiable tasks made on the spot: `count` of them, each with up to `max_constraints` checkable constraints."""

    kind: Literal["tasks"]
    count: int = Field(gt=0)
    seed: int = 0
    max_constraints: int = Field(default=3, ge=1, le=3)


class PythonSource(Settings):
    """Prompts from your own Python function: `function` is "file.py:name" or "package.module:name".

    It is called once, without arguments, and returns or yields the prompts: texts, or tables with the columns that a file has
    (`prompt`, `answer`, `answers`, `instruction_id_list`, `kwargs`), which `columns` may map as for a file. `count` takes only
    the first so many, of a function that never ends for one.

        def sums():
            for first in range(2, 100):
                for second in range(first, 100):
                    yield {"prompt": f"What is {first} times {second}?", "answer": first * second}
    """

    kind: Literal["python"]
    function: str
    count: int | None = Field(default=None, gt=0)
    columns: dict[str, str] = Field(default={})


PromptSource = Annotated[FileSource | DatasetSource | TaskSource | PythonSource, Field(discriminator="kind")]


class PromptSettings(Settings):
    """Where instructions come from and how many are used. Validation prompts are set apart before any iteration draws.

    `unusable` says what to do with an empty, a duplicate or a too long prompt: stop, or drop it and report the count. With
    `recur` the iterations begin a new pass over the prompts, in a new order, once these run out; validation prompts stay apart.
    """

    sources: tuple[PromptSource, ...] = Field(min_length=1)
    per_iteration: int = Field(default=5000, gt=0)
    validation: int = Field(default=1500, gt=0)
    max_tokens: int = Field(default=2048, gt=0)
    unusable: Literal["error", "drop"] = "error"
    recur: bool = False


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
