"""Numbers on their way from a device to the processor, read when they are needed and not before."""

from __future__ import annotations

from typing import Any

import torch


class Later:
    """A tensor's values, copied behind the work that makes them. `read` waits for that work alone, not for what came after.

    On a processor there is nothing to wait for. The copy from a GPU is untested: no GPU has run it yet.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values, self._copied = tensor, None
        if tensor.device.type == "cuda":
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[Any]:
        if self._copied is not None:
            self._copied.synchronize()
        values: list[Any] = self._values.tolist()
        return values
