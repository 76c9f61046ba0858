"""From a judge's text to who won: exact, or an error with the text kept. Nothing is ever guessed.

A verdict is a label of the form between double brackets, `[[A]]`, and nothing but that: no blanks, no lower case, no third
bracket. The last one counts, and only if all others name the same winner; a label of another form (a tie where none was
offered) contradicts as well. Two strengths of the same winner do not: strength counts for nothing (`comparer.Outcome`).
"""

from __future__ import annotations

import re
from typing import Final

from inward.config import VerdictForm
from inward.judging.pairwise.comparer import Outcome

LABELS: Final[dict[VerdictForm, dict[str, float]]] = {
    "ab": {"A": 1.0, "B": -1.0},
    "abc": {"A": 1.0, "B": -1.0, "C": 0.0},
    "arena": {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.0, "B>A": -1.0, "B>>A": -1.0},
}
_EVERY = sorted({label for labels in LABELS.values() for label in labels}, key=len, reverse=True)
_VERDICT = re.compile(rf"(?<!\[)\[\[({'|'.join(map(re.escape, _EVERY))})\]\](?!\])")


def read_verdict(text: str, form: VerdictForm) -> Outcome:
    """Return the outcome that a judge's text states. One without exactly one winner is an error that keeps the text."""
    labels = LABELS[form]
    verdicts = _VERDICT.findall(text)
    if not verdicts:
        return Outcome(value=None, error="no verdict" if text.strip() else "an empty answer", raw=text)
    if foreign := sorted({label for label in verdicts if label not in labels}):
        return Outcome(value=None, error=f"a verdict that was not offered: {', '.join(foreign)}", raw=text)
    if len({labels[label] for label in verdicts}) > 1:
        return Outcome(value=None, error=f"verdicts that contradict each other: {', '.join(sorted(set(verdicts)))}", raw=text)
    return Outcome(value=labels[verdicts[-1]], raw=text)
