"""Laws of thought formats: splitting undoes joining, is total, and no chunking of a stream lets a thought out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inward.errors import UsageError
from inward.thought import BUILT_IN, DIRECT, GENERIC, SPECIFIC, StreamFilter, ThoughtFormat, join, messages, split

SECRET = "\N{SNOWMAN}secret\N{SNOWMAN}"
WORDS = st.text(st.characters(codec="utf-8"), max_size=40) | st.text("<R> \n:Herisponmythug{}", max_size=40)
MARKERS = st.text("<R>|#[]ab :", min_size=1, max_size=6).map(str.strip)


@st.composite
def custom(draw: st.DrawFn) -> ThoughtFormat:
    """A format with markers that are short and alike, so that they overlap with the text around them."""
    thought, response = draw(st.just("") | MARKERS), draw(MARKERS)
    try:
        return ThoughtFormat("custom", "Think. {prompt}", thought, response)
    except UsageError:
        assume(False)
        raise


FORMATS = st.sampled_from([GENERIC, SPECIFIC, DIRECT]) | custom()
THINKING = FORMATS.filter(lambda fmt: fmt.thinks)
HOSTILE = st.builds(
    lambda fmt, parts: (
        fmt,
        "".join(fmt.markers[part % len(fmt.markers)] if isinstance(part, int) else part for part in parts),
    ),
    THINKING,
    st.lists(st.integers(0, 1) | WORDS | st.sampled_from([" ", "\n", "<", "Here is my"]), max_size=8),
)


def free_of(fmt: ThoughtFormat, *texts: str) -> bool:
    return not any(marker in text for marker in fmt.markers for text in texts)


@st.composite
def chunked(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def stream(fmt: ThoughtFormat, chunks: list[str]) -> str:
    filter = StreamFilter(fmt)
    return "".join([*map(filter.feed, chunks), filter.finish()])


@given(FORMATS, WORDS, WORDS)
def test_splitting_undoes_joining(fmt: ThoughtFormat, thought: str, response: str) -> None:
    assume(free_of(fmt, thought, response) and response.strip())
    found = split(fmt, join(fmt, thought, response))
    assert found.error is None
    assert found.response == response.strip()
    assert found.thought == (thought.strip() if fmt.thinks else None)


@given(HOSTILE, st.booleans())
def test_every_text_gives_a_response_or_an_error(case: tuple[ThoughtFormat, str], finished: bool) -> None:
    fmt, text = case
    found = split(fmt, text, finished=finished)
    assert (found.response is None) == (found.error is not None)
    if found.response is not None:
        assert found.response == found.response.strip() != ""
        assert free_of(fmt, found.response)
        assert text.count(fmt.response_marker) >= 1
        assert text.rstrip().endswith(found.response)
    if found.error == "cut_off_in_thought":
        assert not finished


@given(st.data(), HOSTILE)
def test_any_chunking_shows_the_response_that_splitting_finds(data: st.DataObject, case: tuple[ThoughtFormat, str]) -> None:
    fmt, text = case
    shown = stream(fmt, data.draw(chunked(text)))
    found = split(fmt, text)
    if found.response is not None:
        assert shown == found.response
    assert shown == stream(fmt, list(text))  # and every chunking shows the same, well-formed or not


@given(st.data(), FORMATS, WORDS, WORDS)
def test_any_chunking_of_a_joined_output_shows_the_response(
    data: st.DataObject, fmt: ThoughtFormat, thought: str, response: str
) -> None:
    assume(free_of(fmt, thought, response) and response.strip())
    assert stream(fmt, data.draw(chunked(join(fmt, thought, response)))) == response.strip()


@given(st.data(), WORDS)
def test_without_a_thought_the_stream_is_the_text(data: st.DataObject, text: str) -> None:
    assert stream(DIRECT, data.draw(chunked(text))) == text.strip()


@given(st.data(), THINKING, WORDS, WORDS, WORDS)
def test_nothing_of_a_thought_is_shown(data: st.DataObject, fmt: ThoughtFormat, before: str, after: str, response: str) -> None:
    assume(free_of(fmt, SECRET, before + SECRET + after, response))
    assume(not set(SECRET) & set(response))
    text = join(fmt, before + SECRET + after, response)
    filter = StreamFilter(fmt)
    shown = ""
    for chunk in data.draw(chunked(text)):
        shown += filter.feed(chunk)
        assert response.strip().startswith(shown)  # at every moment, not only at the end
    assert shown + filter.finish() == response.strip()


@given(st.data(), THINKING, WORDS, st.booleans())
def test_a_stream_that_ends_in_its_thought_shows_nothing(
    data: st.DataObject, fmt: ThoughtFormat, thought: str, marked: bool
) -> None:
    assume(free_of(fmt, thought))
    text = (f"{fmt.thought_marker}\n" if marked else "") + SECRET + thought
    assume(fmt.response_marker not in text)
    assert stream(fmt, data.draw(chunked(text))) == ""
    cut = split(fmt, text, finished=False)
    assert cut.response is None
    if marked or not fmt.thought_marker:
        assert cut.error == "cut_off_in_thought"


@given(st.data(), THINKING, WORDS, WORDS)
def test_a_thought_after_the_response_is_not_shown(
    data: st.DataObject, fmt: ThoughtFormat, response: str, thought: str
) -> None:
    assume(free_of(fmt, response, thought) and response.strip())
    again = fmt.thought_marker or fmt.response_marker
    text = f"{join(fmt, 'first', response)}\n{again}\n{SECRET}{thought}"
    assume(fmt.response_marker not in response + "\n" and free_of(fmt, "first"))
    assert split(fmt, text).error == "repeated_marker"
    assert stream(fmt, data.draw(chunked(text))) == response.strip()


@pytest.mark.parametrize("marker", ["<<R>", "aab", "abab", "<R><R"])
def test_a_marker_that_begins_like_itself_is_still_caught(marker: str) -> None:
    fmt = ThoughtFormat("custom", response_marker=marker)
    text = f"thought {marker} shown {marker} {SECRET}"
    assert stream(fmt, list(text)) == stream(fmt, [text]) == "shown"


@given(THINKING.filter(lambda fmt: bool(fmt.thought_marker)), WORDS)
def test_a_response_without_a_marked_thought_is_an_error_and_shows_nothing(fmt: ThoughtFormat, text: str) -> None:
    assume(free_of(fmt, text))
    output = f"{text}\n{fmt.response_marker}\n{SECRET}"
    assume(fmt.thought_marker not in output)
    assert split(fmt, output).error == "no_thought_marker"
    assert stream(fmt, list(output)) == ""


@given(FORMATS, WORDS | st.sampled_from(["{prompt}", "{0} {}", "%s", *GENERIC.markers, "User query: {prompt}"]))
def test_a_prompt_stays_as_it_is_whatever_it_holds(fmt: ThoughtFormat, prompt: str) -> None:
    before, after = fmt.template.split("{prompt}")
    assert messages(fmt, prompt) == [{"role": "user", "content": before + prompt + after}]


@given(WORDS)
def test_a_system_turn_leaves_the_prompt_alone(prompt: str) -> None:
    fmt = ThoughtFormat("s", "Think first.", "", "<R>", "system")
    assert messages(fmt, prompt) == [{"role": "system", "content": "Think first."}, {"role": "user", "content": prompt}]


@pytest.mark.parametrize(
    ("fmt", "text", "error"),
    [
        (GENERIC, "An answer.", "no_thought_marker"),
        (GENERIC, "Here is my thought process: t", "no_response_marker"),
        (GENERIC, "Here is my response: r", "no_thought_marker"),
        (GENERIC, "Here is my response: r Here is my thought process: t", "no_thought_marker"),
        (GENERIC, "Here is my thought process: t Here is my response: \n", "empty_response"),
        (GENERIC, "here is my thought process: t here is my response: r", "no_thought_marker"),
        (SPECIFIC, "t", "no_response_marker"),
        (SPECIFIC, "t<R>r<R>r", "repeated_marker"),
        (DIRECT, " \n", "empty_response"),
    ],
)
def test_what_is_wrong_has_a_name(fmt: ThoughtFormat, text: str, error: str) -> None:
    assert split(fmt, text).error == error


@pytest.mark.parametrize(
    "fields",
    [
        {"template": "no slot", "response_marker": "<R>"},
        {"template": "{prompt} {prompt}", "response_marker": "<R>"},
        {"template": "{prompt}", "response_marker": "<R>", "turn": "system"},
        {"thought_marker": "<T>"},
        {"thought_marker": "<R", "response_marker": "<R>"},
        {"thought_marker": "<R>", "response_marker": "<R>"},
        {"response_marker": " <R>"},
    ],
)
def test_a_format_that_cannot_work_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="thought format 'x'"):
        ThoughtFormat("x", **fields)  # type: ignore[arg-type]


def test_the_built_in_formats_ask_for_the_markers_they_are_split_by() -> None:
    assert set(BUILT_IN) == {"generic", "specific", "direct"}
    for fmt in BUILT_IN.values():
        assert all(marker in fmt.template for marker in fmt.markers)
    assert DIRECT.template == "{prompt}"
