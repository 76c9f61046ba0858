"""What a run came to, in one file for people and programs."""

from __future__ import annotations

from inward.runs.ledger import read_costs
from inward.runs.summary import summary
from inward.stages.run import Run
from inward.storage import write_json


def summarise(run: Run) -> None:
    """Write `summary.json`."""
    write_json(run.dir.summary, summary(run.dir, run.recipe, read_costs(run.dir.costs)))
