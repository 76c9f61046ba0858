"""An adapter merged into its base as a folder of weights, for what reads weights from folders: vLLM here, and servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inward.config import Dtype
from inward.engines.transformers.engine import load_model
from inward.storage import storage_errors


@contextmanager
def merged_folder(
    adapter: Path | str, base: Path | None, *, dtype: Dtype, trust_remote_code: bool, within: Path | None = None
) -> Iterator[Path]:
    """Give a folder with an adapter merged in fp32 into `base`, for the length of the block.

    It lies in the folder `within`, or where the system keeps temporary files. Raises UsageError where the model cannot be
    loaded, StorageError where there is no room for it.
    """
    model = load_model(adapter, base, dtype=dtype, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=within) as folder:
        with storage_errors(Path(folder)):
            model.save_pretrained(folder)
        del model
        yield Path(folder).resolve()
