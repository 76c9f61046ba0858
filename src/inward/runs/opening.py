"""Opening a run directory: who may write to it, and whether a recipe may continue what it holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inward.config import Recipe, harmless_keys, recipe_json
from inward.errors import RunChangedError, RunLockedError, UsageError
from inward.runs.claim import take
from inward.runs.directory import RunDir
from inward.runs.mirror import mirrored
from inward.runs.progress import Reporter, Silent
from inward.runs.provenance import provenance
from inward.runs.working_copy import RECORD, copy_folder
from inward.storage import TEMPORARY, remove_leftovers, storage_errors, write_bytes, write_json
from inward.store.index import read_finished
from inward.store.remote import is_url, open_store, path_of

START_UP = (".lock", RECORD, "config.json", "costs.jsonl", "progress.json", "provenance.json", "recipe.toml")
"""What a run directory holds before any stage has stored a record."""


def run_at(place: str | Path) -> RunDir:
    """Return the run at a path or URL, to be worked on. Of one in a store, its copy here is filled by `locked`."""
    if is_url(place := str(place)):
        return RunDir(copy_folder(place, "work"), place.rstrip("/"))
    return RunDir(path_of(place))


def to_check(run: RunDir) -> RunDir:
    """Return what there is of a run before it is worked on: of one in a store, a copy of what is published."""
    return run if run.url is None else _to_read(run.url, weights=False)


def open_existing(place: str | Path, *, weights: bool = False) -> tuple[RunDir, Recipe]:
    """Open a run to read it. Raises UsageError where there is none.

    Of one in a store, all that is published is fetched; its models and checkpoints only if their `weights` are asked for.
    """
    run = _to_read(place, weights) if is_url(place := str(place)) else RunDir(path_of(place))
    if not run.config.exists():
        raise UsageError(f"{place} is not a run directory (it has no config.json); `inward run RECIPE --out {place}` makes one")
    return run, stored_recipe(run)


def _to_read(url: str, weights: bool) -> RunDir:
    from filelock import FileLock

    run, store = RunDir(copy_folder(url, "read"), url.rstrip("/")), open_store(url)
    with storage_errors(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        with FileLock(run.root.with_name(f"{run.root.name}.lock")):
            read_finished(store, run.root, weights=weights)
    return run


def stored_recipe(run: RunDir) -> Recipe:
    """Return the recipe a run was made with. Raises UsageError where `config.json` is something else: a model's, say."""
    try:
        return Recipe.model_validate_json(run.config.read_bytes())
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(
            f"{run.config} is not a recipe that this version of inward can read ({where or 'the file'}: "
            f"{error.errors()[0]['msg']}): choose another folder, or use the version named in provenance.json"
        ) from None


def prepare(run: RunDir, recipe: Recipe, recipe_text: str) -> bool:
    """Make the run directory, or check that `recipe` may continue it. Call while holding the lock. True if it is new.

    Raises what `may_open` raises.
    """
    fresh = may_open(run, recipe)
    remove_leftovers(run.root)
    write_bytes(run.recipe, recipe_text.encode())
    if fresh:
        write_json(run.provenance, provenance(recipe))
    write_bytes(run.config, recipe_json(recipe).encode())
    return fresh


def may_open(run: RunDir, recipe: Recipe) -> bool:
    """Return whether `recipe` would begin a new run there; False where it would continue one. Nothing is written.

    A run that stopped before its first record (a mistake in the recipe, most often) is new again: any recipe may have it.
    Raises UsageError where the folder holds something else, RunChangedError where the recipe differs.
    """
    stored = stored_recipe(run) if run.config.exists() else None
    fresh = not (run.root.exists() and _begun(run))
    if stored is None and not fresh:
        raise UsageError(f"{run.name} is not empty and is no run directory: choose another folder with --out")
    if stored is not None and not fresh:
        _refuse_changes(run, stored, recipe)
    return fresh


@contextmanager
def locked(run: RunDir, reporter: Reporter) -> Iterator[Reporter]:
    """Hold the run's only writer's lock, and yield the reporter of whoever writes. The system frees it when the process dies.

    A run in a store has a lock there too; what is finished comes there meanwhile, and all of it by the end.
    """
    from filelock import FileLock, Timeout

    with storage_errors(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                f"another process is working on {run.name}: wait for it, or stop it, then run the same command again"
            ) from None
    try:
        if run.url is None:
            yield reporter
        else:
            with mirrored(run.root, run.url, reporter) as watched:
                yield watched
    finally:
        lock.release()


def try_lock(run: RunDir) -> None:
    """Raise what `locked` would raise now: RunLockedError, or for a store that cannot be written StorageError."""
    if run.url is not None:
        take(open_store(run.url), "none: only a check").release()
    elif (run.root / ".lock").exists():
        with locked(run, Silent()):
            pass


def _begun(run: RunDir) -> bool:
    """True if the folder holds more than the files of a start-up, whole or left half-written by a kill."""
    others = (path for path in run.root.iterdir() if path.name.removeprefix(TEMPORARY) not in START_UP)
    return any(others) or (run.costs.exists() and run.costs.stat().st_size > 0)


def _refuse_changes(run: RunDir, stored: Recipe, asked: Recipe) -> None:
    before, after = _flat(stored.model_dump(mode="json")), _flat(asked.model_dump(mode="json"))
    harmless = harmless_keys(stored) | harmless_keys(asked)
    changed = [key for key in sorted(before | after) if before.get(key) != after.get(key) and key not in harmless]
    begun = max((t for arm in stored.arms for t in run.iterations(arm)), default=0)
    if "iterations" in changed and asked.iterations >= begun and not _schedule_counts(stored):
        changed.remove("iterations")
    if changed:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {after.get(key)!r} now" for key in changed)
        raise RunChangedError(
            f"{run.name} was made with another recipe:\n{lines}\n"
            "Continue it with its own settings, or start a new run with another --out."
        )


def _schedule_counts(recipe: Recipe) -> bool:
    """Say whether the learning rates of steps taken depend on how many iterations there are to be."""
    training = recipe.training
    return training.carry_optimiser and (training.schedule != "constant" or training.warmup > 0)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        return _flat({str(n): item for n, item in enumerate(tree)}, prefix)
    return {prefix: json.dumps(tree) if isinstance(tree, list) else tree}


def command_to_go_on(argv: list[str] | None = None) -> str:
    import shlex

    words = sys.argv if argv is None else argv
    return shlex.join(["inward", *words[1:]])
