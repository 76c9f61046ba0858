"""The length-controlled score and the normalisation it is made of: their laws, and one guard at its edge for all users."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import PairingSettings
from inward.judging.combined.cascade import Cascade
from inward.judging.combined.part import Part
from inward.judging.judge import Group, Ruling
from inward.judging.length_control import DECIMALS, length_controlled
from inward.judging.scripted import Scripted
from inward.pairing.pair import pair_outputs
from inward.records import Prompt
from inward.statistics import normalise, normalise_rows, std_rows
from tests.build import output, score

FINITE = st.floats(-1e6, 1e6)
COPIES = st.integers(1, 3)
ROWS = st.lists(st.tuples(FINITE, st.floats(0, 1e4), COPIES), min_size=1, max_size=9)


@given(st.lists(FINITE, min_size=1, max_size=9))
def test_normalised_values_have_mean_zero_and_deviation_one(values: list[float]) -> None:
    normalised = np.array(normalise(values))
    assert normalised.mean() == pytest.approx(0, abs=1e-9)
    if len(set(values)) == 1:
        assert normalised.tolist() == [0.0] * len(values)
    else:
        assert normalised.std() == pytest.approx(1)


@given(ROWS, st.sampled_from([0.0, 0.3]), st.integers(0, 3))
def test_copies_count_as_if_they_were_written_out_and_padding_does_not(
    row: list[tuple[float, float, int]], rho: float, padding: int
) -> None:
    values, lengths, copies = (np.array(column) for column in zip(*row, strict=True))
    filler = np.full(padding, np.nan)
    short = length_controlled(
        np.append(values, filler)[None],
        np.append(lengths, filler)[None],
        np.append(copies, [0] * padding).astype(int)[None],
        rho,
    )[0]
    values, lengths = np.repeat(values, copies), np.repeat(lengths, copies)
    long = length_controlled(values[None], lengths[None], np.ones((1, len(values)), dtype=int), rho)[0]
    assert np.repeat(short[: len(row)], copies) == pytest.approx(long, abs=2 * 10**-DECIMALS)
    assert np.isnan(short[len(row) :]).all()


@given(st.lists(FINITE, min_size=1, max_size=9), st.sampled_from([2.0, 0.25, 1e-9]))
def test_the_deviation_is_the_one_that_is_divided_by(values: list[float], scale: float) -> None:
    values_GK = np.array([values, [scale * value for value in values]])
    std_G1 = std_rows(values_GK, np.ones(values_GK.shape, dtype=int))
    assert std_G1[:, 0] == pytest.approx(values_GK.std(axis=1), rel=1e-9, abs=1e-9 * max(map(abs, values)))


def test_of_values_that_differ_by_the_last_bit_one_is_above_the_mean() -> None:
    """Scores in any unit may come, so no difference is too small to count."""
    for value in (1.0, 1e-300, 1e300, 0.1):
        assert normalise([value, math.nextafter(value, math.inf)]) == [-1.0, 1.0]
    assert normalise([5e-324, 0.0]) == [1.0, -1.0]
    assert normalise([0.1 + 0.2, 0.3]) == [1.0, -1.0]


def test_rows_do_not_influence_each_other_and_may_be_empty() -> None:
    values_GK = np.array([[1.0, 2.0, 4.0], [7.0, 7.0, 7.0], [np.nan, np.inf, 3.0]])
    copies_GK = np.array([[1, 1, 1], [2, 1, 1], [0, 0, 0]])
    normalised = normalise_rows(values_GK, copies_GK)
    assert normalised[0].tolist() == normalise([1.0, 2.0, 4.0])
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(normalised[2]).all()
    assert std_rows(values_GK, copies_GK)[1:].tolist() == [[0.0], [0.0]]
    assert length_controlled(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0), dtype=int), 0.1).shape == (2, 0)


def test_what_rounding_leaves_of_a_tie_is_no_lead() -> None:
    """Two responses whose score and length cancel: s is equal, though the sums that give it differ in their last bits."""
    scores, lengths = [0.3, 0.1, 0.2, 0.7, 0.9], [30.0, 10.0, 20.0, 70.0, 90.0]
    s_K = length_controlled(np.array([scores]), np.array([lengths]), np.ones((1, 5), dtype=int), 1.0)[0]
    assert s_K.tolist() == [0.0] * 5


@pytest.mark.parametrize(("gap", "apart"), [(0.0, False), (2.0**-52, True)])
def test_pairing_and_a_cascade_have_the_same_guard(gap: float, apart: bool) -> None:
    """Four scores of 1 or the next larger number: whoever goes by s sees either no spread or a full one."""
    values = {"a": 1.0, "bb": 1.0, "ccc": 1.0 + gap, "dddd": 1.0 + gap}
    outputs = [output(text, response=text) for text in values]
    scores = [score(made, values[made.id]) for made in outputs]
    pairing = pair_outputs(outputs, scores, PairingSettings(rho=0.5), seed=0)
    assert pairing.skipped == ({} if apart else {"all scores equal": 1})

    cheap, dear = (Part(key=key, judge=Scripted(score=lambda _, text: values[text], name=key)) for key in ("first", "then"))
    judge = Cascade(first=cheap, then=dear, sure=0.1, rho=0.5)
    group = Group(prompt=Prompt(id="p", text="Which?", source="test"), responses=tuple(values))
    rulings: list[Ruling] = judge.judge([group])[0]
    assert ('"part": "first"' in rulings[0].detail) is apart
    if apart:
        assert pairing.pairs[0].chosen_id == "ccc"
        assert pairing.pairs[0].rejected_id == "bb"
