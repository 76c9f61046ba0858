"""What folders of this machine were made from, so that another machine, which has no such folder, can make its own.

The table stands in the environment, where every process that this one starts finds it; whoever starts one on another machine
hands `INWARD_ORIGINS` on to it.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

ORIGINS = "INWARD_ORIGINS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The name or URL that a folder on `host` was made from; `revision` and `code` are those of `local_folder`."""

    host: str
    name: str
    revision: str | None = None
    code: bool = False


def note_origin(folder: Path, name: str, *, revision: str | None = None, code: bool = False) -> None:
    """Note what `folder` was made from: a model, or a run in a store with all its models."""
    table = json.loads(os.environ.get(ORIGINS, "{}"))
    table[str(folder)] = asdict(Origin(host=platform.node(), name=name, revision=revision, code=code))
    os.environ[ORIGINS] = json.dumps(table)


def origin_of(folder: Path) -> tuple[Origin, Path] | None:
    """Return what a folder or one around it was made from on another machine, and where it is in that; None if nothing was."""
    table = json.loads(os.environ.get(ORIGINS, "{}"))
    for around in (folder, *folder.parents):
        if str(around) in table:
            origin = Origin(**table[str(around)])
            return None if origin.host == platform.node() else (origin, folder.relative_to(around))
    return None
