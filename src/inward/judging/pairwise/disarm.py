"""Texts to be judged, made harmless for the judge that reads them.

A response could hold a verdict of its own, or a control token that ends the judge's turn and begins another. Both are set apart
by a blank that can be seen. Which control tokens a judge has stands in its tokenizer; where that is not at hand, as for most
endpoints, the forms of common models are known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from inward.errors import UsageError
from inward.judging.pairwise.replies import REASONING_TAGS

_GAP = r"[\s\\\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]{0,16}"
"""Blanks, escapes, and what has no width and so cannot be seen."""
_MARKER_LIKE = re.compile(
    rf"\[{_GAP}\[(?P<inside>{_GAP}[ABC]{_GAP}(?:[<>=]{{1,3}}{_GAP}[ABC]{_GAP})?)\]{_GAP}\]", re.IGNORECASE
)
_KNOWN_CONTROL = re.compile(
    r"<(?=[|\uff5c][^<>\n]{1,64}[|\uff5c]>"  # <|im_end|>, <|eot_id|>, and DeepSeek's wide bars
    r"|\|[\w/-]{1,64}>|[\w/-]{1,64}\|>"  # Gemma's <|channel> and <channel|>
    rf"|/?(?:{REASONING_TAGS})(?:\s[^<>\n]{{0,64}})?/?>"
    r"|/?s>|/?SYS>|(?:start|end)_of_[a-z]{1,16}>|(?:bos|eos|pad|unk|mask|cls|sep)>"
    r"|/?tool_(?:calls?|responses?|outputs?)>|/?tools>|/?function_calls?>|/?(?:minimax|seed):\w{1,32}>"
    r"|(?:image|image_soft_token|audio_soft_token|fim_(?:prefix|middle|suffix|pad)|reponame|filename)>"
    r"|(?:unused|reserved_|extra_id_|special_token_|vision_token_)\d{1,5}>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|MODEL_SETTINGS|ARGS|CALL_ID"
    r"|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX|CLS|SEP|PAD|MASK|UNK|BOS|EOS"
    r"|gMASK|sMASK|multimodal)\]|e~\[)"
    r"|\](?=~!?b[\[\]])"
    r"|\u25c1(?=/?\w{1,32}\u25b7)",
    re.IGNORECASE,
)
_HTML = re.compile(
    r"</?(?:a|b|blockquote|body|br|caption|code|div|em|h[1-6]|head|hr|html|i|img|li|ol|p|pre|s|span|strike|strong|sub|sup|table"
    r"|tbody|td|tfoot|th|thead|tr|u|ul)/?>",
    re.IGNORECASE,
)
"""Tags that some tokenizers have as one token each, and that mean what they do in HTML."""


def disarm(text: str, special_tokens: frozenset[str] = frozenset()) -> str:
    """Return a text to be judged with all that a judge's reader, or its chat template, could take for its own set apart.

    A verdict marker, however spaced, becomes `[ [A] ]`, so that a judge that quotes it has not given it. `<|im_end|>` and its
    like become `< |im_end|>`, so that no tokenizer ends the turn there; `special_tokens` are those of the judge's own
    tokenizer. Both changes can be seen, so the judge is not misled about what stands in the answer; all other text stays as
    it is. Lone surrogates, which no tokenizer takes, become U+FFFD.
    """
    encodable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    safe = _KNOWN_CONTROL.sub(lambda match: f"{match[0]} ", _MARKER_LIKE.sub(_set_apart, encodable))
    if special_tokens:
        pattern = _pattern_of(special_tokens)
        while pattern.search(safe):  # tokens may overlap, or hold blanks themselves
            safe = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", safe)
    return safe


def load_special_tokens(path: str, setting: str) -> frozenset[str]:
    """Return the special tokens of the tokenizer in a folder, or of a Hub name, that `setting` names.

    Raises `UsageError` where there is none.
    """
    from transformers import AutoTokenizer

    from inward.models.names import resolve

    folder = Path(path).expanduser()
    try:
        source = folder if folder.is_dir() else resolve(path)
        return special_tokens_of(AutoTokenizer.from_pretrained(str(source)))
    except (OSError, ValueError, ImportError, UsageError) as error:
        raise UsageError(f"no tokenizer could be loaded from {setting} = {path!r}: {error}") from error


def special_tokens_of(tokenizer: Any) -> frozenset[str]:
    """Return the tokens that a text must not spell out: special ones, and other added ones such as `</think>`.

    Added tokens that are blanks, plain words, single characters or HTML tags are ordinary text, and left out.
    """
    return frozenset(_special_tokens(tokenizer))


def _special_tokens(tokenizer: Any) -> Iterator[str]:
    for token in map(str.strip, tokenizer.all_special_tokens):
        if len(token) > 1 and not token.isalnum():
            yield token
    for entry in tokenizer.added_tokens_decoder.values():
        token = entry.content.strip()
        if len(token) < 2 or token.isalnum() or not any(map(str.isalnum, token)):
            continue
        if entry.special or not _HTML.fullmatch(token):
            yield token


@lru_cache(maxsize=8)
def _pattern_of(tokens: frozenset[str]) -> re.Pattern[str]:
    assert all(len(token) > 1 and token == token.strip() for token in tokens), "a blank after its first character parts a token"
    return re.compile("|".join(map(re.escape, sorted(tokens, key=lambda token: (-len(token), token)))), re.IGNORECASE)


def _set_apart(marker: re.Match[str]) -> str:
    return f"[ [{marker['inside'].strip()}] ]"
