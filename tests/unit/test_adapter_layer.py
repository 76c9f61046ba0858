"""The fused LoRA layer is peft's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inward.training.adapter import fuse


class Layers(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10, bias=False)
        self.second = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def adapted(dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["first", "second"], init_lora_weights=False, **options)
    model: nn.Module = get_peft_model(Layers(), config)
    return model.to(dtype)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the input and of every weight that learns."""
    out = model(x)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [out, *torch.autograd.grad(out.pow(2).sum(), [x, *learned])]


def test_outputs_and_gradients_are_pefts() -> None:
    theirs, ours = adapted(), adapted()
    fuse(ours)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = results(theirs, x)
    assert len(expected) == 2 + 4
    for found, wanted in zip(results(ours, x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_it_is_nearer_to_float64_than_peft_in_bf16() -> None:
    exact, theirs, ours = adapted(), adapted(torch.bfloat16), adapted(torch.bfloat16)
    fuse(ours)
    exact.load_state_dict(theirs.state_dict())
    x = torch.randn(400, 6, dtype=torch.bfloat16)
    wanted = exact(x.double())
    assert (ours(x) - wanted).abs().mean() <= (theirs(x) - wanted).abs().mean()


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_stays_as_peft_computes_it(options: dict[str, Any]) -> None:
    model, x = adapted(torch.float32, **options), torch.randn(3, 6)
    torch.manual_seed(1)
    expected = model(x)
    fuse(model)
    torch.manual_seed(1)
    assert torch.equal(model(x), expected)


def test_an_adapter_that_is_off_is_off() -> None:
    model, x = adapted(torch.float32), torch.randn(3, 6)
    fuse(model)
    with model.disable_adapter():  # type: ignore[operator]
        off = model(x)
    first, second = (module.base_layer for module in model.modules() if hasattr(module, "base_layer"))
    torch.testing.assert_close(off, second(torch.tanh(first(x))))
    assert not torch.allclose(off, model(x))
