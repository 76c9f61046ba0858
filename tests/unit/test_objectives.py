"""The objectives: each against its paper's equation, written out by hand in float64, and against TRL's own code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from inward.config import TrainingSettings
from inward.config.objectives import OBJECTIVES, Objective
from inward.training.loss import PairLoss, Sums
from inward.training.objective import losses, objective_function, pair_sums
from tests.pairs import made_examples

PAIRS = 40


def drawn(pairs: int = PAIRS, seed: int = 0) -> Sums:
    """Sums as long outputs have them, in float64; margins of both signs."""
    draw = torch.Generator().manual_seed(seed)

    def around(middle: float, spread: float) -> torch.Tensor:
        return middle + spread * torch.randn(pairs, generator=draw, dtype=torch.float64)

    chosen, rejected = around(-60.0, 20.0), around(-70.0, 20.0)
    return Sums(
        policy_chosen_B=chosen,
        policy_rejected_B=rejected,
        ref_chosen_B=chosen + around(0.0, 8.0),
        ref_rejected_B=rejected + around(0.0, 8.0),
        chosen_tokens_B=torch.randint(5, 40, (pairs,), generator=draw).double(),
        rejected_tokens_B=torch.randint(5, 40, (pairs,), generator=draw).double(),
        gap_B=around(0.5, 1.0),
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    return math.log(sigmoid(x))


class One:
    """A pair in plain numbers: logps of the chosen (w) and the rejected (l), of the reference, lengths and score gap."""

    def __init__(self, sums: Sums, at: int, moved: float = 0.0) -> None:
        self.w, self.l = sums.policy_chosen_B[at].item() + moved, sums.policy_rejected_B[at].item()
        self.ref_w, self.ref_l = sums.ref_chosen_B[at].item(), sums.ref_rejected_B[at].item()
        self.n_w, self.n_l = sums.chosen_tokens_B[at].item(), sums.rejected_tokens_B[at].item()
        self.gap = sums.gap_B[at].item()


def dpo(p: One) -> float:  # 2305.18290, equation 7
    return -log_sigmoid(0.1 * (p.w - p.ref_w) - 0.1 * (p.l - p.ref_l))


def irpo(p: One) -> float:  # 2404.19733, equation 1, alpha = 0.3
    return dpo(p) - 0.3 * p.w / p.n_w


def conservative(p: One) -> float:  # Mitchell's note: the label is wrong with probability 0.2
    m = 0.1 * (p.w - p.ref_w) - 0.1 * (p.l - p.ref_l)
    return -0.8 * log_sigmoid(m) - 0.2 * log_sigmoid(-m)


def odpo(p: One) -> float:  # 2402.10571: log sigmoid of the margin minus the offset
    return -log_sigmoid(0.1 * (p.w - p.ref_w) - 0.1 * (p.l - p.ref_l) - 2.0 * max(p.gap, 0.0))


def ipo(p: One) -> float:  # 2310.12036, equation 17, on means over tokens
    h = (p.w - p.ref_w) / p.n_w - (p.l - p.ref_l) / p.n_l
    return (h - 1 / (2 * 0.3)) ** 2


def hinge(p: One) -> float:  # 2309.06657, hinge-norm
    return max(0.0, 1 - 0.1 * ((p.w - p.ref_w) - (p.l - p.ref_l)))


def hinge_with_offset(p: One) -> float:
    return max(0.0, 1 + 0.7 * max(p.gap, 0.0) - 0.1 * ((p.w - p.ref_w) - (p.l - p.ref_l)))


def dpo_norm(p: One) -> float:  # 2411.15124: DPO with each log-ratio divided by its length
    return -log_sigmoid(5.0 / p.n_w * (p.w - p.ref_w) - 5.0 / p.n_l * (p.l - p.ref_l))


def simpo(p: One) -> float:  # 2405.14734, equation 6
    return -log_sigmoid(2.0 / p.n_w * p.w - 2.0 / p.n_l * p.l - 1.2)


EQUATIONS: list[tuple[dict[str, Any], Callable[[One], float]]] = [
    ({}, dpo),
    ({"objective": "irpo", "nll_weight": 0.3}, irpo),
    ({"label_smoothing": 0.2}, conservative),
    ({"gap_offset": 2.0}, odpo),
    ({"objective": "ipo", "beta": 0.3}, ipo),
    ({"objective": "hinge"}, hinge),
    ({"objective": "hinge", "gap_offset": 0.7}, hinge_with_offset),
    ({"objective": "dpo_norm"}, dpo_norm),
    ({"objective": "simpo", "gamma": 1.2}, simpo),
]


@pytest.mark.parametrize(("settings", "equation"), EQUATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_objective_is_its_papers_equation(settings: dict[str, Any], equation: Callable[[One], float]) -> None:
    sums = drawn()
    sums.policy_chosen_B.requires_grad_()
    loss_B, _ = losses(TrainingSettings(**settings), sums)
    assert loss_B.detach().tolist() == pytest.approx([equation(One(sums, at)) for at in range(PAIRS)], rel=1e-10)
    loss_B.sum().backward()
    slopes = [(equation(One(sums, at, 1e-5)) - equation(One(sums, at, -1e-5))) / 2e-5 for at in range(PAIRS)]
    assert sums.policy_chosen_B.grad is not None
    assert sums.policy_chosen_B.grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("objective", ["simpo", "dpo"])
def test_simpo_and_label_smoothing_are_those_of_trl(objective: Any, smoothing: float) -> None:
    """TRL has both in its CPO trainer; DPO is its sigmoid loss with log-ratios in place of log-probabilities."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    settings, sums = TrainingSettings(objective=objective, label_smoothing=smoothing), drawn()
    trainer = SimpleNamespace(
        alpha=0.0,
        beta=settings.beta,
        simpo_gamma=1.0,
        label_smoothing=smoothing,
        loss_type="simpo" if objective == "simpo" else "sigmoid",
        accelerator=SimpleNamespace(device="cpu"),
    )
    if objective == "simpo":
        inputs = (sums.policy_chosen_B / sums.chosen_tokens_B, sums.policy_rejected_B / sums.rejected_tokens_B)
    else:
        inputs = (sums.policy_chosen_B - sums.ref_chosen_B, sums.policy_rejected_B - sums.ref_rejected_B)
    theirs, chosen, rejected = CPOTrainer.cpo_loss(trainer, *inputs)
    ours, columns = losses(settings, sums)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(columns["chosen_reward"], chosen)
    torch.testing.assert_close(columns["rejected_reward"], rejected)


def test_smoothed_labels_ask_for_a_finite_margin() -> None:
    """Conservative DPO is lowest where sigmoid(margin) is the share of right labels."""
    sums = drawn(1)
    best = math.log(0.9 / 0.1) / 0.1
    at_best = [
        replace(sums, policy_chosen_B=sums.ref_chosen_B + best + moved, policy_rejected_B=sums.ref_rejected_B)
        for moved in (-0.5, 0.0, 0.5)
    ]
    low, lowest, high = (losses(TrainingSettings(label_smoothing=0.1), item)[0].item() for item in at_best)
    assert lowest < low
    assert lowest < high


def test_the_gap_counts_only_where_the_judge_liked_the_chosen_one_more() -> None:
    """A pair whose rejected output broke the format has no gap; one that length control inverted has a negative one."""
    sums, settings = drawn(), TrainingSettings(gap_offset=1.5)
    plain, offset = losses(TrainingSettings(), sums)[0], losses(settings, sums)[0]
    assert torch.equal(offset > plain, sums.gap_B > 0)
    assert torch.equal(offset == plain, sums.gap_B <= 0)
    examples = [replace(example, gap=gap) for example, gap in zip(made_examples(3), (0.25, None, -1.0), strict=True)]
    rows = torch.zeros(6)
    assert pair_sums(examples, rows, rows, rows).gap_B.tolist() == [0.25, 0.0, -1.0]


def test_simpo_reads_no_reference() -> None:
    settings, sums = TrainingSettings(objective="simpo"), drawn()
    nothing = torch.full((PAIRS,), math.nan, dtype=torch.float64)
    loss_B, columns = losses(settings, replace(sums, ref_chosen_B=nothing, ref_rejected_B=nothing))
    assert torch.equal(loss_B, losses(settings, sums)[0])
    assert all(bool(column.isfinite().all()) for column in columns.values())


@pytest.mark.parametrize("objective", ["irpo", "ipo", "dpo_norm", "simpo"])
def test_means_over_tokens_do_not_fail_where_no_token_counts(objective: Any) -> None:
    sums = replace(
        drawn(), chosen_tokens_B=torch.zeros(PAIRS), policy_chosen_B=torch.zeros(PAIRS), ref_chosen_B=torch.zeros(PAIRS)
    )
    loss_B, columns = losses(TrainingSettings(objective=objective), sums)
    assert bool(loss_B.isfinite().all())
    assert not columns["nll"].any()
    assert not columns["chosen_reward"].any()


def test_the_nll_weighs_sequences_and_not_tokens() -> None:
    sums = replace(drawn(2), policy_chosen_B=torch.tensor([-10.0, -3.0]), chosen_tokens_B=torch.tensor([10.0, 1.0]))
    assert losses(TrainingSettings(), sums)[1]["nll"].mean().item() == 2.0  # the mean over tokens would be 13/11


def test_the_loss_at_the_reference_is_log_2_and_the_log_ratio_0() -> None:
    sums = drawn()
    same = replace(sums, ref_chosen_B=sums.policy_chosen_B, ref_rejected_B=sums.policy_rejected_B)
    for objective in ("dpo", "dpo_norm"):
        loss_B, columns = losses(TrainingSettings(objective=objective), same)
        assert loss_B.tolist() == pytest.approx([math.log(2)] * PAIRS, rel=1e-12)
        assert not columns["log_ratio"].any()


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"objective": "ipo", "label_smoothing": 0.1}, ("training.label_smoothing", "training.objective = 'ipo'")),
        ({"objective": "hinge", "label_smoothing": 0.1}, ("training.label_smoothing", "training.objective = 'hinge'")),
        ({"objective": "ipo", "gap_offset": 1.0}, ("training.gap_offset", "training.objective = 'ipo'")),
        ({"gamma": 1.0}, ("training.gamma", "training.objective = 'dpo'", "'simpo'")),
        ({"objective": "hinge", "nll_weight": 1.0}, ("training.nll_weight", "training.objective = 'hinge'", "'irpo'")),
        ({"objective": "simpo", "reference": "seed"}, ("training.reference = 'seed'", "training.objective = 'simpo'")),
        ({"objective": "simpo", "reference": "sampler"}, ("training.reference = 'sampler'", "training.objective = 'simpo'")),
        ({"thought_weight": 0.0, "response_weight": 0.0}, ("training.thought_weight", "training.response_weight")),
        ({"epochs": 2, "early_stop": {"patience": 2}}, ("training.early_stop.patience (2)", "training.epochs = 2")),
        ({"trackers": ("wandb", "wandb")}, ("training.trackers", "twice")),
        ({"tracker_run": "mine"}, ("training.tracker_run", "training.trackers")),
    ],
)
def test_contradictions_name_both_keys(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSettings(**settings)
    assert all(key in str(caught.value) for key in keys)


def test_beta_fits_the_objective_unless_given() -> None:
    objectives: tuple[Any, ...] = ("dpo", "irpo", "ipo", "hinge", "dpo_norm", "simpo")
    assert [TrainingSettings(objective=name).beta for name in objectives] == [0.1, 0.1, 0.1, 0.1, 5.0, 2.0]
    assert TrainingSettings(objective="simpo", beta=0.5).beta == 0.5


def cpo(sums: Sums, settings: TrainingSettings) -> PairLoss:
    """CPO's preference loss (arXiv 2401.08417, equation 3): DPO's with a uniform reference."""
    chosen_B, rejected_B = settings.beta * sums.policy_chosen_B, settings.beta * sums.policy_rejected_B
    loss_B = -torch.nn.functional.logsigmoid(chosen_B - rejected_B)
    return PairLoss(chosen_reward_B=chosen_B, rejected_reward_B=rejected_B, pair_loss_B=loss_B, loss_B=loss_B)


def test_a_function_and_a_line_in_the_table_make_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Objective(function=f"{__name__}:cpo", beta=0.3, needs_reference=False, takes=("gamma",))
    with pytest.raises(ValidationError, match="'cpo' is not an objective"):
        TrainingSettings(objective="cpo")
    monkeypatch.setitem(OBJECTIVES, "cpo", line)
    settings = TrainingSettings(objective="cpo", gamma=0.1)
    assert (settings.beta, settings.needs_reference) == (0.3, False)
    loss_B, columns = losses(settings, drawn())
    assert torch.equal(loss_B, cpo(drawn(), settings).loss_B)
    assert not columns["log_ratio"].any()
    with pytest.raises(ValidationError, match=r"training\.nll_weight is set but training\.objective = 'cpo'"):
        TrainingSettings(objective="cpo", nll_weight=1.0)


def test_every_line_of_the_table_names_a_function() -> None:
    assert all(callable(objective_function(name)) for name in OBJECTIVES)
