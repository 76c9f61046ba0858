"""How well a judge agrees with people, by the figures that the data sets themselves use.

*A label a pair* (LLMBar, Zeng et al. 2024, arXiv 2310.07641; `LLMEvaluator/evaluate.py` of princeton-nlp/LLMBar): accuracy is
averaged over both orders of presentation, positional agreement is the share of pairs with the same winner in both orders, each
by subset; over the adversarial subsets, and over all, the mean of the subsets' figures is taken. A tie counts one half, as
between equal ratings there. Deviation: there, two answers without a verdict agree with each other; here they do not count.

*Several people a pair* (PandaLM, Wang et al. 2024, arXiv 2306.05087; `data/compute_metrics.py` of WeOpenML/PandaLM): the truth
is what most people said, of three classes (0 a tie, 1, 2); precision, recall and F1 are the plain means over the three, each 0
where it is undefined. The judge's class is what it said in both orders; two orders that contradict each other are a tie, so
that position cancels. Deviations: an answer without a verdict is a tie there and unscored here; a pair without a majority takes
its first annotator's word there and is left out here (its own test set has none).

What is unscored is never counted in silence: figures `*_all` count it as not right, a lower bound; those `*_scored` are over
what was scored. Intervals resample prompts, as several pairs may share one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from inward.records import Verdict, content_id
from inward.statistics import Floats
from inward.trust.audit import errors, is_alone, over_battles, reasons
from inward.trust.figures import NOTHING, Figure, divide, of_sums, share
from inward.trust.gold import GoldPair
from inward.trust.relations import consistent, results_by_group, tied, won_by_first

Winner = int | None
"""1 or 2, 0 for a tie, None where there is no verdict."""
BothOrders = tuple[Winner, Winner]
"""Who won where response 1 stood first, and where response 2 did; twice the same where responses are scored one by one."""
CLASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAccuracy:
    """Agreement with one label a pair. `agreement` is positional: undefined for a judge that scores responses one by one."""

    pairs: int
    accuracy_all: Figure
    accuracy_scored: Figure
    agreement: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Agreement with the majority of several people. Precision is over what the judge has scored."""

    pairs: int
    accuracy_all: Figure
    accuracy_scored: Figure
    precision: Figure
    recall_all: Figure
    recall_scored: Figure
    f1_all: Figure
    f1_scored: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """What the people are to each other: a ceiling for a judge. Both are means over the pairs of people."""

    people: int
    agreement: Figure
    kappa: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldAudit:
    """A judge on one gold file. `longer_*` are the figures of a judge for which the longer response wins, for scale.

    `labels` is by subset ("all" for all pairs together, "mean of ..." for means of subsets) and empty where several people
    judged; `classes` and `people` are None where each pair has one label.
    """

    judge: str
    pairs: int
    prompts: int
    verdicts: int
    no_majority: int
    errors: Figure
    reasons: dict[str, int]
    consistency: Figure
    first_position: Figure
    ties: Figure
    longer_wins: Figure
    labels: dict[str, LabelAccuracy]
    longer_labels: dict[str, LabelAccuracy]
    classes: ClassAccuracy | None
    longer_classes: ClassAccuracy | None
    people: People | None


def audit_gold(pairs: Sequence[GoldPair], verdicts: Sequence[Verdict]) -> GoldAudit:
    """Return the figures of one judge's verdicts (`gold.ask`) on pairs; their order does not matter."""
    assert pairs, "nothing to compare with people"
    cluster = {pair.id: content_id(pair.prompt) for pair in pairs}.__getitem__
    asked = [verdict for verdict in verdicts if not is_alone(verdict.unscored)]
    judged = winners(pairs, verdicts)
    longer = {pair.id: (_longer(pair), _longer(pair)) for pair in pairs}
    counted = [pair for pair in pairs if pair.majority is not None]
    several = bool(pairs[0].annotators)
    in_pairs = any(verdict.second is not None for verdict in verdicts)
    battles = results_by_group(asked)
    return GoldAudit(
        judge=", ".join(sorted({verdict.judge for verdict in verdicts})),
        pairs=len(pairs),
        prompts=len({pair.prompt for pair in pairs}),
        verdicts=len(asked),
        no_majority=len(pairs) - len(counted),
        errors=errors(asked, cluster),
        reasons=reasons(asked),
        consistency=over_battles(battles, consistent, cluster),
        first_position=over_battles(battles, won_by_first, cluster),
        ties=over_battles(battles, tied, cluster),
        longer_wins=share((cluster(pair.id), _for_longer(pair, judged[pair.id])) for pair in pairs),
        labels={} if several else _by_subset(counted, judged, in_pairs),
        longer_labels={} if several else _by_subset(counted, longer, False),
        classes=classes(counted, judged) if several else None,
        longer_classes=classes(counted, longer) if several else None,
        people=people(pairs) if several else None,
    )


def winners(pairs: Sequence[GoldPair], verdicts: Sequence[Verdict]) -> dict[str, BothOrders]:
    """Return who won each pair, by its id, in either order."""
    value = {(verdict.first, verdict.second): verdict.value for verdict in verdicts}
    winners_of: dict[str, BothOrders] = {}
    for pair in pairs:
        id_1, id_2 = pair.ids
        if (id_1, None) in value:
            first, second = value[id_1, None], value[id_2, None]
            winner = None if first is None or second is None else _sign(first - second)
            winners_of[pair.id] = winner, winner
        else:
            swapped = value.get((id_2, id_1))
            winners_of[pair.id] = _sign(value.get((id_1, id_2))), _sign(None if swapped is None else -swapped)
    return winners_of


def label_accuracy(pairs: Sequence[GoldPair], judged: Mapping[str, BothOrders], in_pairs: bool) -> LabelAccuracy:
    rows = [(content_id(pair.prompt), _right(pair, judged[pair.id]), judged[pair.id]) for pair in pairs]
    return LabelAccuracy(
        pairs=len(pairs),
        accuracy_all=share((prompt, (right, 2)) for prompt, right, _ in rows),
        accuracy_scored=share((prompt, (right, _scored(both))) for prompt, right, both in rows),
        agreement=share((p, (both[0] == both[1], 1)) for p, _, both in rows if _scored(both) == 2) if in_pairs else NOTHING,
    )


def classes(pairs: Sequence[GoldPair], judged: Mapping[str, BothOrders]) -> ClassAccuracy:
    """Return the figures over three classes, from the table of truths by what the judge said (the last column: unscored)."""
    tables: dict[str, Floats] = defaultdict(lambda: np.zeros((CLASSES, CLASSES + 1)))
    for pair in pairs:
        assert pair.majority is not None, "pairs without a majority are left out before"
        first, second = judged[pair.id]
        answer = CLASSES if first is None or second is None else first if first == second else 0
        tables[content_id(pair.prompt)][pair.majority, answer] += 1
    totals = {prompt: table.ravel().tolist() for prompt, table in tables.items()}
    scored = sum(table[:, :CLASSES].sum() for table in tables.values())

    def figure(statistic: Callable[[Floats], Floats], n: float) -> Figure:
        return of_sums(totals, lambda sums: statistic(sums.reshape(*sums.shape[:-1], CLASSES, CLASSES + 1)), n=n)

    return ClassAccuracy(
        pairs=len(pairs),
        accuracy_all=figure(lambda table: divide(_hits(table).sum(axis=-1), table.sum(axis=(-1, -2))), len(pairs)),
        accuracy_scored=figure(
            lambda table: divide(_hits(table).sum(axis=-1), table[..., :CLASSES].sum(axis=(-1, -2))), scored
        ),
        precision=figure(lambda table: _precision(table).mean(axis=-1), scored) if scored else NOTHING,
        recall_all=figure(lambda table: _recall(table, CLASSES + 1).mean(axis=-1), len(pairs)),
        recall_scored=figure(lambda table: _recall(table, CLASSES).mean(axis=-1), scored) if scored else NOTHING,
        f1_all=figure(lambda table: _f1(table, CLASSES + 1).mean(axis=-1), len(pairs)),
        f1_scored=figure(lambda table: _f1(table, CLASSES).mean(axis=-1), scored) if scored else NOTHING,
    )


def people(pairs: Sequence[GoldPair]) -> People | None:
    """Return the agreement of the people with each other, told apart by their place in the list; None for one person alone."""
    size = len(pairs[0].annotators)
    if size < 2 or any(len(pair.annotators) != size for pair in pairs):
        return None
    duos = list(combinations(range(size), 2))
    agreement = share((content_id(p.prompt), (p.annotators[a] == p.annotators[b], 1)) for p in pairs for a, b in duos)
    kappas = [_kappa([(pair.annotators[a], pair.annotators[b]) for pair in pairs]) for a, b in duos]
    defined = [kappa for kappa in kappas if kappa is not None]
    return People(people=size, agreement=agreement, kappa=fmean(defined) if len(defined) == len(duos) else None)


def _by_subset(pairs: Sequence[GoldPair], judged: Mapping[str, BothOrders], in_pairs: bool) -> dict[str, LabelAccuracy]:
    of_subset: dict[str, list[GoldPair]] = defaultdict(list)
    for pair in pairs:
        of_subset[pair.subset or ""].append(pair)
    accuracies = {"all": label_accuracy(pairs, judged, in_pairs)}
    if len(of_subset) > 1:
        accuracies |= {name: label_accuracy(of_subset[name], judged, in_pairs) for name in sorted(of_subset)}
        families: dict[str, list[str]] = defaultdict(list, {"subsets": sorted(of_subset)})
        for name in sorted(of_subset):
            families[name.partition("/")[0]].append(name)
        means = {f"mean of {family}": names for family, names in families.items() if len(names) > 1}
        accuracies |= {title: _mean_of({n: of_subset[n] for n in names}, judged, in_pairs) for title, names in means.items()}
    return accuracies


def _mean_of(subsets: Mapping[str, Sequence[GoldPair]], judged: Mapping[str, BothOrders], in_pairs: bool) -> LabelAccuracy:
    """Return the means of the subsets' figures, each subset counting the same."""

    def figure(count: Callable[[BothOrders, float], tuple[float, float]]) -> Figure:
        totals: dict[str, Floats] = defaultdict(lambda: np.zeros((len(subsets), 2)))
        for index, pairs in enumerate(subsets.values()):
            for pair in pairs:
                totals[content_id(pair.prompt)][index] += count(judged[pair.id], _right(pair, judged[pair.id]))
        sums = {prompt: table.ravel().tolist() for prompt, table in totals.items()}
        of_all = sum(float(table[:, 1].sum()) for table in totals.values())
        return of_sums(sums, lambda s: _rates(s.reshape(*s.shape[:-1], len(subsets), 2)).mean(axis=-1), n=of_all)

    return LabelAccuracy(
        pairs=sum(map(len, subsets.values())),
        accuracy_all=figure(lambda _, right: (right, 2)),
        accuracy_scored=figure(lambda both, right: (right, _scored(both))),
        agreement=figure(lambda both, _: (both[0] == both[1], 1) if _scored(both) == 2 else (0, 0)) if in_pairs else NOTHING,
    )


def _rates(sums: Floats) -> Floats:
    return divide(sums[..., 0], sums[..., 1])


def _right(pair: GoldPair, both: BothOrders) -> float:
    return sum(0.5 if winner == 0 else float(winner == pair.label) for winner in both if winner is not None)


def _scored(both: BothOrders) -> int:
    return sum(winner is not None for winner in both)


def _for_longer(pair: GoldPair, both: BothOrders) -> tuple[float, float]:
    longer = _longer(pair)
    won = [winner for winner in both if winner] if longer else []
    return sum(winner == longer for winner in won), len(won)


def _longer(pair: GoldPair) -> int:
    winner = _sign(len(pair.response_1) - len(pair.response_2))
    assert winner is not None
    return winner


def _sign(lead: float | None) -> Winner:
    """Return 1 for a lead of the first, 2 for one of the second, 0 for none."""
    return None if lead is None else 1 if lead > 0 else 2 if lead < 0 else 0


def _hits(table: Floats) -> Floats:
    return np.asarray(np.diagonal(table, axis1=-2, axis2=-1), dtype=np.float64)


def _precision(table: Floats) -> Floats:
    return divide(_hits(table), table[..., :CLASSES].sum(axis=-2), 0.0)


def _recall(table: Floats, columns: int) -> Floats:
    return divide(_hits(table), table[..., :columns].sum(axis=-1), 0.0)


def _f1(table: Floats, columns: int) -> Floats:
    precision, recall = _precision(table), _recall(table, columns)
    return divide(2 * precision * recall, precision + recall, 0.0)


def _kappa(answers: Sequence[tuple[int, int]]) -> float | None:
    """Return Cohen's kappa (1960) of two people; None where chance alone would always agree."""
    table = np.zeros((CLASSES, CLASSES))
    for first, second in answers:
        table[first, second] += 1
    table /= len(answers)
    chance = float(table.sum(axis=1) @ table.sum(axis=0))
    return None if chance == 1 else (float(np.trace(table)) - chance) / (1 - chance)
