"""Pairing on small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from inward.config import PairingSettings
from inward.pairing.pair import Pairing, describe, pair_outputs, rho_grid
from inward.records import Output
from tests.build import output, score


def paired(rows: list[tuple[Output, float | None]], *, seed: int = 0, **settings: Any) -> Pairing:
    scores = [score(made, value) for made, value in rows]
    return pair_outputs([made for made, _ in rows], scores, PairingSettings(**settings), seed=seed)


def test_length_control_makes_a_long_output_pay_for_its_length() -> None:
    # N(score) of the first two differs by 0.25 only; N(length) by 2.3.
    rows = [
        (output("long", response="x" * 400), 1.0),
        (output("short", response="x" * 10), 0.9),
        (output("other", response="y" * 20), 0.9),
        (output("bad", response="x" * 15), 0.0),
    ]
    assert paired(rows).pairs[0].chosen_id == "long"
    controlled = paired(rows, rho=0.5)
    assert (controlled.pairs[0].chosen_id, controlled.pairs[0].rejected_id) == ("short", "bad")
    assert controlled.inverted == 0


def test_a_pair_that_length_control_turned_round_stands_and_is_counted() -> None:
    # Of 17 outputs the best-scored one is very long: N(length) = 4, so that it falls below the worst short ones.
    rows = [(output("long", response="x" * 999), 1.01)]
    rows += [(output(f"good{i}", response=f"good{i}"), 1.0) for i in range(8)]
    rows += [(output(f"poor{i}", response=f"poor{i}"), 0.0) for i in range(8)]
    pairing = paired(rows, rho=0.5)
    assert pairing.pairs[0].rejected_id == "long"
    assert pairing.pairs[0].chosen_score == 1.0
    assert pairing.inverted == 1
    assert paired(rows, rho=0.5, min_gap=0.1).skipped == {"gap below min_gap": 1}
    assert paired(rows).inverted == 0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(output("a"), 1.0)], "fewer than two scored"),
        ([(output("a"), 1.0), (output("b"), None)], "fewer than two scored"),
        ([(output("a", response="long enough"), 1.0), (output("b", response="short"), 1.0)], "all scores equal"),
        ([(output("a"), None), (output("b"), None)], "no output scored"),
        ([(output("a", response=None), None), (output("b"), None)], "no output scored"),
        ([(output("a", response=None), None)], "all outputs malformed"),
        ([(output("a"), 1.0), (output("b", response="another"), 0.9)], "gap below min_gap"),
        ([(output("a"), 1.0), (output("b"), 0.0)], "identical texts"),
    ],
)
def test_a_prompt_without_a_pair_is_counted_under_its_reason(rows: list[tuple[Output, float | None]], reason: str) -> None:
    assert paired(rows, min_gap=0.5, rho=0.5).skipped == {reason: 1}
    assert paired(rows, min_gap=0.5, rho=0.5).pairs == []


def stage(prompts: int, scored: int) -> list[tuple[Output, float | None]]:
    """`prompts` prompts with a malformed output each; the first `scored` have a scored pair, the others one score."""
    rows: list[tuple[Output, float | None]] = []
    for p in range(prompts):
        rows += [(output(f"{p}a", f"p{p}"), 1.0), (output(f"{p}x", f"p{p}", None), None)]
        rows += [(output(f"{p}b", f"p{p}", "worse"), 0.0)] if p < scored else []
    return rows


def test_malformed_rejects_go_first_to_prompts_that_have_no_other_pair() -> None:
    pairing = paired(stage(prompts=12, scored=9), format_errors=0.1)
    kinds = {pair.prompt_id: pair.kind for pair in pairing.pairs}
    malformed = [prompt for prompt, kind in kinds.items() if kind == "format_error"]
    assert len(pairing.pairs) == 10  # one more than the nine scored pairs, and one of ten is the share
    assert len(malformed) == 1
    assert malformed[0] in {"p9", "p10", "p11"}
    assert pairing.skipped == {"fewer than two scored": 2}


def test_the_rest_of_the_share_replaces_rejected_outputs_of_scored_pairs() -> None:
    pairing = paired(stage(prompts=10, scored=10), format_errors=0.3)
    assert len(pairing.pairs) == 10
    assert sum(pair.kind == "format_error" for pair in pairing.pairs) == 3
    assert not any(pair.kind == "format_error" for pair in paired(stage(prompts=10, scored=10), format_errors=0.0).pairs)


def test_the_seed_decides_which_prompts_and_ties_are_drawn() -> None:
    def drawn(seed: int) -> frozenset[str]:
        pairing = paired(stage(prompts=20, scored=20), format_errors=0.2, seed=seed)
        return frozenset(pair.prompt_id for pair in pairing.pairs if pair.kind == "format_error")

    assert len({drawn(seed) for seed in range(5)}) > 1
    ties = [(output(str(i), response=f"equal {i}"), float(i == 0)) for i in range(6)]
    assert len({paired(ties, seed=seed).pairs[0].rejected_id for seed in range(20)}) > 1


def test_describe_gives_the_lengths_that_rho_is_tuned_by() -> None:
    rows = [(output("a", response="x" * 30), 1.0), (output("b", response="x" * 10), 0.0), (output("c", "q"), 1.0)]
    rows += [(output("d", response=None), None), (output("e", response=None, error="cut_off_response"), None)]
    rows += [(output("f", "q", response=None, error="cut_off_response"), None)]
    found = describe(paired(rows), [made for made, _ in rows])
    assert found == {
        "pairs": 1,
        "format_error_pairs": 0,
        "inverted": 0,
        "skipped": {"fewer than two scored": 1},
        "malformed": {"cut_off_response": 2, "no_response_marker": 1},
        "chosen_length": 30.0,
        "rejected_length": 10.0,
        "length_unit": "characters",
        "rho": 0.0,
        "rho_auto": False,
        "length_rule": False,
    }
    assert describe(paired(rows[2:3]), [rows[2][0]])["chosen_length"] is None


def three(best: int, middle: int, worst: int, prompt_id: str = "p") -> list[tuple[Output, float | None]]:
    """Return outputs with responses of these lengths and scores of 1, 0.9 and 0: N(score) of 0.82, 0.6 and -1.41."""
    lengths = {"best": best, "middle": middle, "worst": worst}
    rows = zip(lengths.items(), (1.0, 0.9, 0.0), strict=True)
    return [(output(f"{prompt_id}-{name}", prompt_id, name[0] * length), value) for (name, length), value in rows]


def test_auto_takes_no_more_length_control_than_the_rule_needs() -> None:
    rows = three(best=100, middle=10, worst=55)  # N(length) of 1.22, -1.22 and 0: the two change places from 0.0907 on
    pairing = paired(rows, rho="auto")
    assert (pairing.rho, pairing.pairs[0].chosen_id) == (0.1, "p-middle")
    assert pairing.pairs == paired(rows, rho=0.1).pairs
    assert describe(pairing, [made for made, _ in rows])["length_rule"] is True
    assert paired(rows, rho=0.09).pairs[0].chosen_id == "p-best"


def test_auto_weighs_all_prompts_together() -> None:
    long, short = three(best=100, middle=10, worst=55), three(best=10, middle=20, worst=56, prompt_id="q")
    assert paired(long + short, rho="auto").rho == 0.0  # 45 too long and 46 too short: the mean is what counts


def test_auto_needs_no_control_where_chosen_responses_are_as_long_as_rejected_ones() -> None:
    assert paired(three(best=30, middle=99, worst=30), rho="auto").rho == 0.0


def test_where_no_rho_is_large_enough_the_largest_is_taken_and_it_is_said() -> None:
    rows = three(best=100, middle=90, worst=10)
    pairing = paired(rows, rho="auto", rho_max=0.333)
    found = describe(pairing, [made for made, _ in rows])
    assert (found["rho"], found["rho_auto"], found["length_rule"]) == (0.333, True, False)


def test_auto_takes_no_rho_that_leaves_nothing_to_learn_from() -> None:
    rows = [(output("long", response="x" * 999), 1.3)]
    rows += [(output(f"o{n}", response="x" * (10 + n)), value) for n, value in enumerate([1.0] * 8 + [0.0] * 8)]
    assert paired(rows, rho=0.5, min_gap=1.15).pairs == []  # the others differ by 1 only
    pairing = paired(rows, rho="auto", min_gap=1.15)
    assert 0 < pairing.rho < 0.5
    assert pairing.pairs[0].chosen_id == "long"


def test_no_pair_at_all_is_no_reason_for_any_length_control() -> None:
    pairing = paired([(output("only"), 1.0)], rho="auto")
    assert (pairing.pairs, pairing.rho) == ([], 0.0)
    assert describe(pairing, [])["length_rule"] is None


def test_the_grid_ends_at_the_largest_rho_and_repeats_none() -> None:
    assert rho_grid(0.5) == [n / 100 for n in range(51)]
    assert rho_grid(0.025) == [0.0, 0.01, 0.02, 0.025]
    assert rho_grid(0.29)[-2:] == [0.28, 0.29]
    assert rho_grid(0.001) == [0.0, 0.001]


def test_a_thought_pays_for_its_length_where_it_has_a_weight() -> None:
    rows = [
        (output("wordy", response="x" * 10, thought="t" * 900), 1.0),
        (output("terse", response="y" * 10, thought="t" * 9), 0.9),
        (output("bad", response="z" * 10, thought="t" * 450), 0.0),
    ]
    assert paired(rows, rho=0.5).pairs[0].chosen_id == "wordy"  # what is said of responses alone
    assert paired(rows, thought_weight=0.5).pairs[0].chosen_id == "terse"
    bare = [(output(made.id, response=made.response), value) for made, value in rows]
    assert paired(bare, thought_weight=9.0).pairs == paired(bare).pairs


def test_of_many_outputs_the_one_near_two_deviations_below_the_mean_is_rejected_and_not_the_worst() -> None:
    """Scores 1 to 24 and an oddity at -60: mean 9.6, deviation 15.4, so that -21.2 is nearest to the output that scored 1."""
    rows = [(output(f"o{n:02d}", response=f"answer {n}"), float(n)) for n in range(1, 25)]
    rows += [(output("odd", response="nonsense"), -60.0)]
    assert paired(rows).pairs[0].rejected_id == "odd"
    pair = paired(rows, rejected="mu-2sigma").pairs[0]
    assert (pair.chosen_id, pair.rejected_id, pair.rejected_score) == ("o24", "o01", 1.0)
    assert paired(rows, rejected="mu-2sigma", min_gap=40.0).skipped == {"gap below min_gap": 1}, "the gap is that of the pair"


def test_an_output_as_good_as_the_chosen_one_is_never_rejected() -> None:
    """One of 32 fails: two deviations below the mean is nearer to those that pass, which is what the chosen one does."""
    rows = [(output(f"o{n}", response=f"answer {n}"), 1.0) for n in range(31)] + [(output("bad", response="no"), 0.0)]
    assert paired(rows, rejected="mu-2sigma").pairs[0].rejected_id == "bad"
