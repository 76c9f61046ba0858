"""How many rows are drawn side by side where nobody says: by free memory, and never none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inward.engines.memory import GIB, MOST_ROWS, USABLE, rows_that_fit

VOCABULARY = 128_256


def test_an_8b_model_on_a_gpu_of_80_gib_draws_hundreds_of_rows() -> None:
    """Llama-3-8B: 32 layers, 8 key/value heads of 128 in bf16 are 128 KiB a token; 16 GiB of 80 are its weights."""
    token = 2 * 32 * 8 * 128 * 2
    assert rows_that_fit(62 * GIB, token=token, tokens=1536, vocabulary=VOCABULARY) == 208
    assert rows_that_fit(6 * GIB, token=token, tokens=1536, vocabulary=VOCABULARY) == 16
    assert rows_that_fit(GIB, token=token, tokens=1536, vocabulary=VOCABULARY) == 3


def test_a_small_model_is_not_given_more_rows_than_pay() -> None:
    assert rows_that_fit(130 * GIB, token=2 * 30 * 3 * 64 * 2, tokens=600, vocabulary=49_152) == MOST_ROWS


@given(st.integers(0, 2**40), st.integers(1, 2**22), st.integers(1, 2**17), st.integers(1, 2**18))
def test_what_rows_take_fits_or_there_is_but_one(free: int, token: int, tokens: int, vocabulary: int) -> None:
    rows = rows_that_fit(free, token=token, tokens=tokens, vocabulary=vocabulary)
    assert 1 <= rows <= MOST_ROWS
    assert rows == 1 or rows * token * tokens <= USABLE * free
