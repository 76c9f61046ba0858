"""Rendering a chat template, with the date that a template may ask for held fixed.

Some templates write today's date into the system turn (`strftime_now`). A run that is resumed on another day must not
change its prompts by that, so the date is an argument here. `transformers` offers `strftime_now` itself and turns every
function that it is handed into a plain string, so a macro of that name is put before such a template. Other templates are
rendered as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from inward.errors import UsageError

Messages = Sequence[dict[str, str]]

CLOCK = "strftime_now"
STRFTIME_MACRO = (
    "{%- macro strftime_now(format) -%}"
    "{%- for part in format.replace('%%', '%!').split('%') -%}"
    "{%- if loop.first -%}{{ part }}"
    "{%- elif part[:1] in ('-', '_', '0', '^', '#') -%}{{ inward_date[part[:2]] }}{{ part[2:] }}"
    "{%- else -%}{{ inward_date[part[:1]] }}{{ part[1:] }}"
    "{%- endif -%}{%- endfor -%}{%- endmacro %}\n"
)
"""`date.strftime` for templates. All parts but the first begin with a directive, whose first character may be a flag."""
DIRECTIVE = re.compile(r"%((?:(?<!\{%)[-_0^#])?[aAbBcdDeFfGgHhIjmMpRSTuUVwWxXyYzZ])")
"""A directive of `strftime`. What follows `{%-` is a statement of the template instead."""


def reads_date(tokenizer: Any) -> bool:
    """Say whether the chat template of a tokenizer asks for the date."""
    return tokenizer.chat_template is not None and CLOCK in tokenizer.get_chat_template()


def render(tokenizer: Any, messages: Messages, *, reply: bool, today: date | None = None) -> str:
    """Return the text of a conversation, with the beginning of the model's next turn where `reply` is true.

    `today` is the date that the template is told: the present one unless given. Raises `UsageError` where the template
    refuses the turns, as some do a system turn.
    """
    from jinja2 import TemplateError

    variables: dict[str, Any] = {}
    if reply:
        # A template with a thinking mode of its own is told to leave it off: its thoughts would not be ours to hide.
        variables["enable_thinking"] = False
    if reads_date(tokenizer):
        variables["chat_template"] = STRFTIME_MACRO + tokenizer.get_chat_template()
        variables["inward_date"] = _directives(tokenizer.get_chat_template(), today or date.today())
    try:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=reply, tokenize=False, **variables)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UsageError(
            f"the model's chat template refuses the turns {roles}: {error}. If it takes no system turn, use "
            "thought.turn = 'user' (in chat: leave out --system)"
        ) from error
    return str(text)


def _directives(template: str, today: date) -> dict[str, str]:
    """Return what each directive of `strftime` that stands in the template gives. The time of day is midnight."""
    return {name: today.strftime(f"%{name}") for name in DIRECTIVE.findall(template)} | {"!": "%"}
