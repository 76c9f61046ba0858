"""progress.json: what any status line may read of a run, written by the run alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inward.runs import progress
from inward.runs.place import Place
from inward.runs.progress import Silent, tracked
from inward.storage import read_json

PLACE = Place(arm="thinking", iteration=2, stage="outputs")


def test_it_says_where_the_run_is_and_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    with tracked(path, Silent()) as reporter:
        reporter.begin(PLACE, 8, "outputs")
        begun = read_json(path)
        assert (begun["state"], begun["done"], begun["total"], begun["rate"]) == ("running", 0, 8, None)
        assert (begun["arm"], begun["iteration"], begun["stage"], begun["process"]) == ("thinking", 2, "outputs", os.getpid())
        reporter.advance(2, 100)
        reporter.advance(4, 200)
        now = read_json(path)
        assert (now["done"], now["tokens"]) == (6, 300)
        assert now["seconds_left"] == pytest.approx(2 / now["rate"], rel=0.01, abs=0.1)
        reporter.end()
    assert read_json(path)["state"] == "finished"


def test_a_run_that_an_error_ends_is_stopped(tmp_path: Path) -> None:
    def fail() -> None:
        with tracked(tmp_path / "progress.json", Silent()) as reporter:
            reporter.begin(PLACE, 8, "outputs")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read_json(tmp_path / "progress.json")["state"] == "stopped"


def test_it_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: clock[0])
    monkeypatch.setattr(progress, "write_json", lambda _, value, **__: written.append(value.get("done")))
    with tracked(tmp_path / "progress.json", Silent()) as reporter:
        reporter.begin(PLACE, 100, "outputs")
        for _ in range(100):
            clock[0] += 0.1
            reporter.advance(1, 10)
    assert written[0] == 0
    assert written[-1] is None
    assert 9 <= len(written) - 2 <= 10


def test_the_reporter_is_told_the_place_itself(tmp_path: Path) -> None:
    told: list[object] = []

    class Listening(Silent):
        def begin(self, place: Place, total: int, unit: str) -> None:
            told.append(place)

    with tracked(tmp_path / "progress.json", Listening()) as reporter:
        reporter.begin(PLACE, 1, "outputs")
    assert told == [PLACE]
