"""What commands write: plain text everywhere, colour only on a terminal, one JSON document where `--json` asks for it.

Text from a model or a data set is hostile: it may carry terminal escape sequences. It passes through `clean` first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # operating system command: titles, links, clipboard
    r"|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # device control, privacy message, application command
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # control sequence: colours, cursor, erasing
    r"|\x1b[ -/]*[0-~]?"  # every other escape
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Return `text` without escape sequences and control characters; line breaks and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n"))).encode("utf-8", "replace").decode()


def on_terminal() -> bool:
    return sys.stdout.isatty()


def write(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write to the error stream, so that what is piped onwards stays clean."""
    sys.stderr.write(text + "\n")


def styled(text: str, style: str) -> None:
    """Write already clean text, in a rich style such as "dim" or "bold" on a terminal."""
    if not on_terminal():
        return write(text)
    from rich.console import Console
    from rich.text import Text

    return Console(highlight=False).print(Text(text, style=style))


def json_document(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Write a table: drawn on a terminal, else aligned columns two spaces apart. None shows as "-"."""
    cells = [[clean(_cell(value)) for value in row] for row in rows]
    if on_terminal():
        return _drawn(headers, cells, title)
    if title:
        write(title)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [list(headers), *cells]:
        write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return None


def shorten(text: str, width: int) -> str:
    """Return `text` on one line, cut to `width` characters with an ellipsis."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1].rstrip() + "…"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _drawn(headers: Sequence[str], cells: Sequence[Sequence[str]], title: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*headers, title=title, title_justify="left")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))  # Text: brackets in a cell are no markup
    Console(highlight=False).print(drawn)
