"""Prompts from all sources of a recipe, each text once, with a count of what was left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from inward.config import DatasetSource, FileSource, PromptSettings, PromptSource, PythonSource, TaskSource
from inward.errors import UsageError
from inward.prompts.columns import known_columns, to_prompt
from inward.prompts.rows import Rows, dataset_rows, file_rows, function_rows
from inward.prompts.tasks import generate_tasks
from inward.records import Prompt

Unusable = Literal["error", "drop"]
Located = Iterator[tuple[str, Prompt]]
"""Prompts, each with where it came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The usable prompts in the order of their sources, and what a person should know of the rest, a line each."""

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]


def load_prompts(settings: PromptSettings) -> Loaded:
    """Read every source. Two prompts are the same where they differ in white space and letter case only.

    UsageError, with file and line or row, for what cannot be read, and for an empty or duplicate prompt unless
    `prompts.unusable` is "drop"; MissingExtraError for a dataset without the `datasets` extra.
    """
    sift = _Sift(settings.unusable)
    prompts = tuple(sift.keep(itertools.chain.from_iterable(map(_read, settings.sources))))
    if not prompts:
        raise UsageError("the sources hold no usable prompt: check prompts.sources")
    return Loaded(prompts=prompts, notes=sift.notes())


def normalised(text: str) -> str:
    """Return what two prompts share if they are the same: the text without outer or repeated white space, case folded."""
    return " ".join(text.split()).casefold()


def _from_file(source: FileSource) -> Located:
    return _prompts(file_rows(source.path), source.columns, source.path, _file_name(source.path))


def _from_dataset(source: DatasetSource) -> Located:
    return _prompts(dataset_rows(source), source.columns, source.path, source.path)


def _from_tasks(source: TaskSource) -> Located:
    tasks = itertools.islice(generate_tasks(source.seed, source.max_constraints), source.count)
    return ((f"generated task {number}", task) for number, task in enumerate(tasks, 1))


def _from_function(source: PythonSource) -> Located:
    return _prompts(function_rows(source), source.columns, source.function, _file_name(source.function))


SOURCES: Final[dict[str, Callable[[Any], Located]]] = {
    "file": _from_file,
    "dataset": _from_dataset,
    "tasks": _from_tasks,
    "python": _from_function,
}
"""How each kind of source is read. A new kind joins here, and its settings join `PromptSource` in `inward.config.prompts`."""


def _read(source: PromptSource) -> Located:
    """Yield each prompt of a source with where it came from."""
    return SOURCES[source.kind](source)


def _prompts(rows: Rows, columns: Mapping[str, str], where: str, label: str) -> Located:
    """Yield the prompt of each row. `label` is the `source` of the prompts whose rows name none."""
    mapped = known_columns(columns, where=where)
    for row_where, row in rows:
        yield row_where, to_prompt(row, mapped, where=row_where, source=label)


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


class _Sift:
    """Keep each usable prompt once; stop at, or count, the others."""

    def __init__(self, unusable: Unusable) -> None:
        self._unusable = unusable
        self._empty = self._duplicates = 0

    def keep(self, located: Iterable[tuple[str, Prompt]]) -> Iterator[Prompt]:
        places: dict[str, str] = {}
        ids: dict[str, str] = {}
        for where, prompt in located:
            text = normalised(prompt.text)
            if not text:
                self._empty += 1
                self._stop(f"{where}: the prompt is empty")
            elif text in places:
                self._duplicates += 1
                self._stop(f"{where}: the prompt repeats that of {places[text]}")
            elif prompt.id in ids:
                raise UsageError(f"{where}: the id {prompt.id!r} is that of another prompt, {ids[prompt.id]}: ids must differ")
            else:
                places[text] = ids[prompt.id] = where
                yield prompt

    def notes(self) -> tuple[str, ...]:
        counts = ((self._empty, "empty"), (self._duplicates, "duplicate"))
        return tuple(f"{count} {what} prompt{'s' * (count > 1)} dropped" for count, what in counts if count)

    def _stop(self, problem: str) -> None:
        if self._unusable == "error":
            raise UsageError(f"{problem}. Mend the file, or set prompts.unusable = 'drop' to leave such prompts out")
