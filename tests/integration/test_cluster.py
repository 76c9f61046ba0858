"""A run over a Ray cluster of three nodes ends like one on this machine, whoever dies meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import started_cluster
from tests.integration.cluster_kills import KILLS, answers, run_until_all_are_killed, write_inputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="the processes of a node are found in /proc"),
]
pytest.importorskip("ray", reason="needs the extra `ray`")


def test_killed_in_every_stage_a_run_over_a_cluster_equals_one_on_this_machine(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path)
    with started_cluster() as nodes:
        report = run_until_all_are_killed(recipe, tmp_path, nodes)
    assert len(report.killed) == len(KILLS), f"too little was killed: {report.killed}"
    assert report.lost == [], "nothing that was finished is done again"
    assert report.different == []
    assert answers(tmp_path / "there-0") >= answers(tmp_path / "here") > 0, "no kill hides what a finished shard has spent"
