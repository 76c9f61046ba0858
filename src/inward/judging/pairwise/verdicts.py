"""From a judge's text to who won: exact, or an error with the text kept. Nothing is ever guessed.

A verdict is a label of the form between double brackets, `[[A]]`, and nothing but that: no blanks, no lower case, no third
bracket. The last one counts, and only if all others name the same winner; a label of another form (a tie where none was
offered) contradicts as well. Two strengths of the same winner do not: strength counts for nothing (`compare.Outcome`).
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

_GAP = (
    r"[\s\\\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]{0,16}"  # blanks, escapes, and what has no width and so cannot be seen
)
_MARKER_LIKE = re.compile(
    rf"\[{_GAP}\[(?P<inside>{_GAP}[ABC]{_GAP}(?:[<>=]{{1,3}}{_GAP}[ABC]{_GAP})?)\]{_GAP}\]", re.IGNORECASE
)
_CONTROL = re.compile(
    r"<(?=[|\uff5c][^<>\n]{1,64}[|\uff5c]>"  # <|im_end|>, <|eot_id|>, and DeepSeek's wide bars
    r"|/?s>|/?SYS>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\])",
    re.IGNORECASE,
)


def read_verdict(text: str, form: VerdictForm) -> Outcome:
    """Return the outcome that a judge's text states. One without exactly one winner is an error that keeps the text."""
    labels = LABELS[form]
    found = _VERDICT.findall(text)
    if not found:
        return Outcome(value=None, error="no verdict" if text.strip() else "an empty answer", raw=text)
    if foreign := sorted({label for label in found if label not in labels}):
        return Outcome(value=None, error=f"a verdict that was not offered: {', '.join(foreign)}", raw=text)
    if len({labels[label] for label in found}) > 1:
        return Outcome(value=None, error=f"verdicts that contradict each other: {', '.join(sorted(set(found)))}", raw=text)
    return Outcome(value=labels[found[-1]], raw=text)


def disarm(text: str) -> str:
    """Return a text to be judged with all that a judge's reader, or its chat template, could take for its own set apart.

    A verdict marker, however spaced, becomes `[ [A] ]`, so that a judge that quotes it has not given it; `<|im_end|>` and
    its like become `< |im_end|>`, so that no tokenizer ends the turn there. Both changes can be seen, so the judge is not
    misled about what stands in the answer; everything else stays as it is. Lone surrogates, which no tokenizer takes,
    become U+FFFD.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub(lambda match: f"{match[0]} ", _MARKER_LIKE.sub(_set_apart, whole))


def _set_apart(marker: re.Match[str]) -> str:
    return f"[ [{marker['inside'].strip()}] ]"
