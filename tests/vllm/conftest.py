"""What holds for the tests of vLLM, which `make test-vllm` runs in an environment of their own: all they use is here."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.register_assert_rewrite("tests.contract.test_engines")
