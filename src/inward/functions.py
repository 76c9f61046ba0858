"""Functions by name: those of this package that a table names, and those of a user's own file or package."""

from __future__ import annotations

import importlib
from typing import Any


def named(reference: str) -> Any:
    """Return what "package.module:name" names in this package. The module is imported here and not before."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
