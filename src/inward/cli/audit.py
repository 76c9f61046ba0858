"""`inward audit`: can the judge be trusted? From what a run has stored, and beside people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.config import Recipe
    from inward.execution.task import Executor
    from inward.runs.directory import RunDir
    from inward.stages.audit import Stage
    from inward.trust.figures import Figure
    from inward.trust.gold import GoldPair
    from inward.trust.people import GoldAudit

FIGURES = {
    "errors": "verdicts without a value",
    "format_errors": "outputs that break the format",
    "unscored": "responses the judge left unscored",
    "alone": "responses with no other to compare with",
    "consistency": "pairs judged the same in both orders",
    "first_position": "battles won by what stands first",
    "ties": "battles that end in a tie",
    "cyclic_groups": "prompts with a cycle",
    "cyclic_triples": "triples that are a cycle",
    "spearman": "score with length, Spearman",
    "pearson": "score with length, Pearson",
    "longer_wins": "pairs that the longer response wins",
    "no_spread": "prompts with all scores equal",
}
CLASSES = ("accuracy_all", "accuracy_scored", "precision", "recall_all", "recall_scored", "f1_all", "f1_scored")


def audit(
    target: Annotated[str, typer.Argument(help="A run directory, or a recipe (file or name) whose judge --gold is put to.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of a recipe to change.")
    ] = None,
    gold: Annotated[
        list[Path] | None, typer.Option(help="Pairs that people judged, JSON lines or Parquet. May be given several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about N pairs of each file only, drawn at random.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COLUMN", help="What a field of --gold is called in the file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where verdicts on --gold are kept. Default: RUN/audit, or the cache for recipes and URLs."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object, with all figures.")] = False,
) -> None:
    """Measure how far a judge can be trusted: errors, position, ties, cycles, length, and agreement with people.

    A run's stored verdicts are read, not asked for again. With --gold the judge is asked about pairs in both orders; what it
    said is kept, and a stopped audit goes on. A gold file has prompt, response_1, response_2, and label (1 or 2) or annotators
    (a list of 0, 1 or 2).

    \b
    Example:
      inward audit runs/demo
      inward audit my-recipe.toml --gold llmbar.jsonl --gold pandalm.jsonl --limit 320
    """
    from inward.cli.progress import make_reporter
    from inward.cli.run import INTERRUPTED
    from inward.execution.choose import executing
    from inward.runs.opening import command_to_go_on

    run, recipe = _open(target, overrides or [], bool(gold))
    files = _read(gold or [], columns or [], limit)
    stages = _stages(run, recipe) if run else []
    folder = out or (run.root / "audit" if run and run.url is None else _cache())
    reporter = make_reporter()
    try:
        with executing(recipe.execution) as executor:
            gold_audits = {name: _ask(recipe, name, pairs, folder, reporter, executor) for name, pairs in files.items()}
    except KeyboardInterrupt:
        reporter.close()
        reporter.say(f"\nStopped. What the judge said is kept in {folder}; to go on:\n  {command_to_go_on()}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        reporter.close()
    if json_output:
        output.json_document(_document(target, stages, gold_audits, recipe))
        return
    for stage in stages:
        if stage.of in ("samples", "seed"):  # every checkpoint's validation would bury them; --json has all
            _show_stage(stage, recipe)
    for name, figures in gold_audits.items():
        _show_gold(name, figures)


def _open(target: str, overrides: list[str], gold: bool) -> tuple[RunDir | None, Recipe]:
    """Return the run, if the target is one, and the recipe."""
    from inward.cli.recipes import find_recipe
    from inward.config import load_recipe
    from inward.errors import UsageError
    from inward.runs.opening import open_existing
    from inward.store.remote import is_url, path_of

    if is_url(target) or path_of(target).is_dir():
        if overrides:
            raise UsageError(f"{target} is a run, which has its settings: give KEY=VALUE with a recipe only")
        return open_existing(target)
    recipe = load_recipe(find_recipe(target), overrides)
    if not gold:
        raise UsageError(f"{target} is a recipe and has no verdicts yet: give --gold FILE, or audit a run directory")
    return None, recipe


def _read(gold: list[Path], columns: list[str], limit: int | None) -> dict[str, list[GoldPair]]:
    """Read all files before anything is asked, so that a mistake in the last one costs nothing."""
    from inward.errors import UsageError
    from inward.trust.gold import draw, read_gold

    mapped = {}
    for item in columns:
        name, equals, column = item.partition("=")
        if not equals:
            raise UsageError(f"--columns {item!r} must have the form NAME=COLUMN")
        mapped[name] = column
    if not gold and (limit is not None or mapped):
        raise UsageError("--limit and --columns are about the pairs of --gold: give --gold FILE with them")
    if len({path.stem for path in gold}) < len(gold):
        raise UsageError("two --gold files have the same name: rename one, since what is asked is kept under it")
    return {path.stem: draw(read_gold(path, mapped), limit) for path in gold}


def _stages(run: RunDir, recipe: Recipe) -> list[Stage]:
    from inward.errors import UsageError
    from inward.stages.audit import audit_run

    stages = audit_run(run, recipe)
    if not stages:
        raise UsageError(f"{run.name} has no verdicts yet; `inward status {run.name}` shows how far it is")
    return stages


def _cache() -> Path:
    from inward.storage import cache_dir

    return cache_dir() / "audit"


def _ask(recipe: Recipe, name: str, pairs: list[GoldPair], folder: Path, reporter: Any, executor: Executor) -> GoldAudit:
    from dataclasses import asdict

    from inward.stages.audit import ask_gold, audited, folder_of
    from inward.storage import write_json
    from inward.trust.people import audit_gold

    verdicts = ask_gold(recipe, pairs, name, folder, reporter=reporter, executor=executor)
    result = audit_gold(pairs, verdicts)
    write_json(folder_of(audited(recipe.judge), name, folder) / "audit.json", asdict(result))
    return result


def _document(target: str, stages: list[Stage], gold: dict[str, GoldAudit], recipe: Recipe) -> dict[str, Any]:
    from dataclasses import asdict

    from inward.trust.limits import breaches

    return {
        "target": target,
        "stages": [
            {**asdict(stage), "limits_broken": [breach.limit for breach in breaches(stage.audit, recipe.judge_limits)]}
            for stage in stages
        ],
        "gold": {name: asdict(result) for name, result in gold.items()},
    }


def _show_stage(stage: Stage, recipe: Recipe) -> None:
    from inward.trust.limits import breaches

    of = "samples" if stage.of == "samples" else f"validation of {stage.of}"
    note = "" if stage.complete else ", as far as it is judged"
    figures = stage.audit
    title = f"{stage.arm} iteration {stage.iteration}, {of}{note}: {figures.verdicts} verdicts on {figures.prompts} prompts"
    _show_figures(figures, title)
    _show_reasons(figures.reasons)
    for breach in breaches(figures, recipe.judge_limits):
        output.write(f"beyond judge_limits.{breach.limit} = {breach.bound:g}: {breach.rule.says}")


def _show_gold(name: str, result: GoldAudit) -> None:
    of = f"{result.pairs} pairs with {result.prompts} prompts"
    if result.no_majority:
        of += f", {result.no_majority} without a majority and left out below"
    output.write(f"judge: {output.clean(result.judge)}\n")
    _show_figures(result, f"{name}: {result.verdicts} verdicts on {of}")
    _show_reasons(result.reasons)
    if result.labels:
        heads = ["subset", "pairs", "accuracy, unscored not right", "over scored", "positional agreement", "longer wins"]
        rows = [
            [
                subset,
                row.pairs,
                cell(row.accuracy_all),
                cell(row.accuracy_scored),
                cell(row.agreement),
                cell(result.longer_labels[subset].accuracy_all),
            ]
            for subset, row in result.labels.items()
        ]
        output.table(heads, rows, title=f"{name}: agreement with the labels")
    if result.classes and result.longer_classes:
        titles = {field: field.replace("_all", ", unscored not right").replace("_scored", " over scored") for field in CLASSES}
        lines: list[list[object]] = [
            [titles[f], cell(getattr(result.classes, f)), cell(getattr(result.longer_classes, f))] for f in CLASSES
        ]
        if result.people:
            lines.append(["two people with each other", cell(result.people.agreement), None])
            lines.append(["two people, Cohen's kappa", result.people.kappa, None])
        output.table(
            ["agreement with the majority", "judge", "longer wins"], lines, title=f"{name}: three classes, tie, 1 and 2"
        )
    output.write()


def _show_figures(audit: Any, title: str) -> None:
    figures = [(says, getattr(audit, field, None)) for field, says in FIGURES.items()]
    output.table(
        ["figure", "value", "95% interval", "of"],
        [[says, figure.value, interval(figure), figure.n] for says, figure in figures if figure and figure.n],
        title=title,
    )


def _show_reasons(reasons: dict[str, int]) -> None:
    if reasons:
        output.table(["why there is no value", "verdicts"], list(reasons.items()))
    output.write()


def interval(figure: Figure) -> str | None:
    return None if figure.low is None or figure.high is None else f"[{figure.low:.3f}, {figure.high:.3f}]"


def cell(figure: Figure) -> str | None:
    return None if figure.value is None else f"{figure.value:.3f} {interval(figure) or ''}".rstrip()
