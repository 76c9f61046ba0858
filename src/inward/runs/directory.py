"""The run directory: where everything is, who may write to it, and whether a recipe may continue it.

runs/<name>/
  recipe.toml  config.json  provenance.json  inputs.json  costs.jsonl  progress.json  summary.json
  <arm>/iter_000/                the seed's evaluation
  <arm>/iter_001/  prompts/ outputs/ verdicts/ scores/ pairs/ reference/   Parquet shards
                   judges.json  pairing.json  checkpoints/  validation/  model/  evaluation.json
                   optimiser/  (training.carry_optimiser: what the next iteration's training goes on from)
                   reference_check/  reference.json   (training.reference = "sampler")
  comparison/iter_001.json       both arms side by side
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Nothing here reads or writes but the methods that say so.

    Of a run in a store (`url`), `root` is the copy on this machine.
    """

    root: Path
    url: str | None = None

    @property
    def name(self) -> str:
        """What a user calls the run: its URL or its folder."""
        return self.url or str(self.root)

    @property
    def seen(self) -> Path | None:
        """The folder that the nodes of a cluster have to see; None for a run in a store, which they reach there."""
        return self.root if self.url is None else None

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def costs(self) -> Path:
        return self.root / "costs.jsonl"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs.json"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def iteration(self, arm: str, t: int) -> Path:
        return self.root / arm / f"iter_{t:03d}"

    def comparison(self, t: int) -> Path:
        return self.root / "comparison" / f"iter_{t:03d}.json"

    def iterations(self, arm: str) -> list[int]:
        """Return the numbers of the iterations begun so far, 0 (the seed) included."""
        return sorted(int(path.name[5:]) for path in (self.root / arm).glob("iter_[0-9][0-9][0-9]*") if path.is_dir())
