"""When a judge counts as broken."""

from __future__ import annotations

from pydantic import Field

from inward.config.base import Settings


class JudgeLimits(Settings):
    """What stops a run: a figure of `inward audit` whose whole 95% interval lies beyond its limit, from `prompts` prompts on.

    The limits are checked after the judging of every iteration and of the seed's validation. The defaults stop what is broken
    beyond doubt and nothing else; 1 turns a limit off, and so does 0 for a `min`. `max_errors` is a share of verdicts,
    `max_unscored` of responses. `min_consistency` is a share of pairs asked in both orders, `max_one_position` of battles won
    from the same position, first or second, whichever is more. `max_cycles` is a share of triples, of which a coin makes a
    quarter cycles. `max_length_correlation` is Spearman's within prompts of which at least four responses have a score, of
    either sign; it does not hold for verifiable judges, as a prompt may demand a length. The limits alter nothing that is
    stored, so a run may go on with other limits.
    """

    prompts: int = Field(default=20, ge=2)
    max_errors: float = Field(default=0.5, ge=0.0, le=1.0)
    max_unscored: float = Field(default=0.5, ge=0.0, le=1.0)
    min_consistency: float = Field(default=0.1, ge=0.0, le=1.0)
    max_one_position: float = Field(default=0.95, ge=0.5, le=1.0)
    max_ties: float = Field(default=0.95, ge=0.0, le=1.0)
    max_cycles: float = Field(default=1.0, ge=0.0, le=1.0)
    max_length_correlation: float = Field(default=0.95, ge=0.0, le=1.0)
