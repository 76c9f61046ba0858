"""How many outputs are drawn of each prompt, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """`k` outputs of each prompt, of at most `max_new_tokens` tokens, drawn at `temperature`.

    An output that breaks its format is drawn again until it has been drawn `tries` times. `logps` notes the log-probability of
    each token. `allow_cut_off` says that a response which the limit cut off is still a response, as where models are measured.
    """

    k: int
    tries: int
    temperature: float
    max_new_tokens: int
    logps: bool = False
    allow_cut_off: bool = True
