"""Short hands for records in tests: everything that a test does not speak of gets a plain value."""

from __future__ import annotations

from inward.records import Output, Prompt, Score


def prompt(text: str = "Name a colour.", *, id: str | None = None, answers: tuple[str, ...] = ()) -> Prompt:
    return Prompt(id=id or f"p-{text}", text=text, source="test", answers=answers)


def output(
    id: str,
    prompt_id: str = "p",
    response: str | None = "a response",
    *,
    thought: str | None = None,
    error: str = "no_response_marker",
    tries: int = 1,
) -> Output:
    return Output(
        id=id,
        prompt_id=prompt_id,
        index=0,
        prompt_tokens=(1,),
        tokens=(2,),
        written=(False,),
        text=f"{thought or ''}|{response or id}",
        thought=thought,
        response=response,
        format_error=error if response is None else None,
        finish="stop",
        tries=tries,
    )


def score(of: Output, value: float | None, unscored: str = "the judge failed") -> Score:
    return Score(output_id=of.id, prompt_id=of.prompt_id, value=value, unscored=unscored if value is None else None)
