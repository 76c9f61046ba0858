"""Verifiable tasks made on the spot: a request and one to three demands that a program can check.

They let the whole loop run with a judge that is exact and costs nothing. The demands span what a model of a hundred million
parameters sometimes meets and sometimes does not: a group of samples that all score the same teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from inward.errors import UsageError
from inward.prompts.demands import CONSTRAINED, KINDS, Kind, demand
from inward.prompts.topics import REQUESTS, TOPICS, YES_OR_NO
from inward.records import Constraint, Prompt, content_id

SOURCE = "tasks"
PATIENCE = 10_000
"""So many repeats in a row mean that the tasks have run out."""


def generate_tasks(seed: int, max_constraints: int) -> Iterator[Prompt]:
    """Yield verifiable tasks, no two with the same text; the same seed gives the same ones, however many are taken.

    Each has one to `max_constraints` demands that do not contradict each other. There are millions; UsageError once they run
    out. No demand needs data that has to be downloaded to be checked.
    """
    rng = Random(f"inward tasks {seed} {max_constraints}")
    seen: set[str] = set()
    repeats = 0
    while repeats < PATIENCE:
        text, constraints = _task(rng, rng.randint(1, max_constraints))
        if text in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(text)
        yield Prompt(id=content_id(text), text=text, source=SOURCE, constraints=constraints)
    raise UsageError(f"only {len(seen)} different tasks can be made: lower `count` of the tasks source, or add other sources")


def _task(rng: Random, size: int) -> tuple[str, tuple[Constraint, ...]]:
    subject, related = rng.choice(TOPICS)
    words = rng.sample(related, len(related))
    kinds = _compatible(rng, size)
    requests = YES_OR_NO if kinds[0].checker == CONSTRAINED else REQUESTS
    request = rng.choice(requests).format(subject=subject)
    demands = [demand(kind, rng, words) for kind in kinds]
    return _phrase(rng, request, [wording for wording, _ in demands]), tuple(constraint for _, constraint in demands)


def _compatible(rng: Random, size: int) -> list[Kind]:
    """Draw up to `size` kinds of which no two share a tag; fewer where a kind leaves room for no other."""
    chosen: list[Kind] = []
    while len(chosen) < size:
        taken = {tag for kind in chosen for tag in kind.tags}
        free = [kind for kind in KINDS if not kind.tags & taken]
        if not free:
            break
        chosen.append(rng.choices(free, [kind.weight for kind in free])[0])
    return chosen


def _phrase(rng: Random, request: str, demands: list[str]) -> str:
    one_line = all("\n" not in wording for wording in demands)
    styles = [_after, _listed] if len(demands) > 1 else [_after]
    if one_line and all(wording[-1] in ".!?" for wording in demands):
        styles.append(_before)
    return rng.choice(styles)(request, demands)


def _after(request: str, demands: list[str]) -> str:
    joiner = "\n" if any("\n" in wording or wording[-1] not in ".!?)" for wording in demands) else " "
    return joiner.join((request, *demands))


def _before(request: str, demands: list[str]) -> str:
    return " ".join((*demands, request))


def _listed(request: str, demands: list[str]) -> str:
    return "\n".join((request, "Follow these rules:", *(f"{n}. {wording}" for n, wording in enumerate(demands, 1))))
