"""Where instructions come from, and how they are shared out among validation and iterations."""

from __future__ import annotations

from inward.prompts.load import Loaded, load_prompts

__all__ = ["Loaded", "load_prompts"]
