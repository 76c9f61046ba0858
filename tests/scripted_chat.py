"""A judge model that follows a function of the two answers it reads, and fails by lot."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inward.judging.pairwise.comparer import Reply
from inward.judging.spending import Spending
from inward.records import content_id


def answers(conversation: Sequence[dict[str, str]]) -> tuple[str, str]:
    """Return the two answers that a judge reads in a conversation."""
    text = conversation[-1]["content"]
    found = []
    for name in ("answer A", "answer B"):
        _, _, rest = text.partition(f"--- {name} begins (")
        found.append(rest.partition("\n")[2].partition(f"\n--- {name} ends (")[0])
    return found[0], found[1]


def longer(first: str, second: str) -> str:
    return f"The longer one.\n[[{'A' if len(first) > len(second) else 'B'}]]"


@dataclass
class ScriptedChat:
    """A chat whose answer is a function of the two answers it reads; it fails by lot at a rate, in different ways."""

    script: Callable[[str, str], str] = longer
    failure_rate: float = 0.0
    seed: int = 0
    name: str = "scripted chat"
    asked: list[tuple[str, str]] = field(default_factory=list)

    def costs(self) -> Spending:
        return Spending(answers=len(self.asked))

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        return [self._reply(*answers(turns), max_tokens) for turns in conversations]

    def _reply(self, first: str, second: str, max_tokens: int) -> Reply:
        self.asked.append((first, second))
        draw = random.Random(content_id(str(self.seed), first, second))
        if draw.random() < self.failure_rate:
            failures = (
                Reply(text=None, error="HTTP 500"),
                Reply(text=""),
                Reply(text="I cannot say."),
                Reply(text="[[A]] or [[B]]"),
                Reply(text="[[A]] so far", completion_tokens=max_tokens),
            )
            return draw.choice(failures)
        return Reply(text=self.script(first, second), completion_tokens=5)
