"""What `inward run RECIPE --check` prints: what is amiss, what each stage will take, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from inward.cli import output

if TYPE_CHECKING:
    from inward.stages.check import Checked
    from inward.stages.forecast import IterationForecast, StageForecast

GIB = 2**30


def document(checked: Checked) -> dict[str, Any]:
    """Return what `--json` prints. Problems are sentences; all sizes are in bytes, and all counts are upper bounds."""
    return asdict(replace(checked, problems=())) | {
        "problems": [str(problem) for problem in checked.problems],
        "seconds_left": seconds_left(checked.iterations),
        "to_pay": _money(checked.iterations),
    }


def show(checked: Checked) -> None:
    """Print all but the problems, which are an error's to say."""
    for note in checked.notes:
        output.write(f"note: {output.clean(note)}")
    hardware = checked.hardware
    gpus = f"{hardware.gpus} GPU{'s' * (hardware.gpus > 1)}, the first with" if hardware.gpus else "no GPU,"
    output.write(
        f"This machine: {hardware.cores} processor core{'s' * (hardware.cores > 1)}, {gpus} {_gib(hardware.memory)} GiB."
    )
    if checked.packages:
        rows = [[p.name, p.version or "missing", p.wanted or "any", f"inward[{p.extra}]"] for p in checked.packages]
        output.write()
        output.table(["package", "here", "wanted", "extra"], rows, title="Packages beside the usual ones")
    _show_stages(checked.iterations)
    _show_memory(checked)
    _show_disk(checked)
    _show_sums(checked)


def _show_stages(iterations: Sequence[IterationForecast]) -> None:
    rows = [
        [one.arm, numbers, stage.stage, f"{stage.count:,} {stage.unit}", stage.judge or None, *_tokens(stage), _clock(stage)]
        for one, numbers in _alike(iterations)
        for stage in one.stages
    ]
    output.write()
    heads = ["arm", "iteration", "stage", "at most", "judge", "tokens read", "tokens written", "time"]
    output.table(heads, rows, title="What each iteration takes (0 is the measurement of the seed)")


def _alike(iterations: Sequence[IterationForecast]) -> list[tuple[IterationForecast, str]]:
    """Return one iteration for each stretch of an arm that takes the same (but for what it reads), with its numbers."""
    stretches: dict[tuple[Any, ...], list[IterationForecast]] = {}
    for one in iterations:
        stages = tuple(replace(stage, read=0) for stage in one.stages)
        stretches.setdefault((one.arm, one.finished, one.iteration > 0, stages), []).append(one)
    return [(longest, _numbers(group)) for group in stretches.values() for longest in [max(group, key=_read)]]


def _numbers(group: Sequence[IterationForecast]) -> str:
    first, last = group[0].iteration, group[-1].iteration
    numbers = str(first) if first == last else f"{first} to {last}, each"
    return f"{numbers} (done)" if group[0].finished else numbers


def _read(one: IterationForecast) -> int:
    return sum(stage.read for stage in one.stages)


def _tokens(stage: StageForecast) -> list[str | None]:
    return [f"{count:,}" if count else None for count in (stage.read, stage.written)]


def _clock(stage: StageForecast) -> str | None:
    from inward.cli.progress import clock

    return None if stage.seconds is None else clock(stage.seconds)


def _show_memory(checked: Checked) -> None:
    rows = [
        [one.stage, one.model, _gib(one.weights), _gib(one.rest), _gib(one.total), _gib(one.there)] for one in checked.memory
    ]
    if rows:
        output.write()
        heads = ["stage", "model", "weights", "beside them at most", "together", "there is"]
        output.table(heads, rows, title="Memory of one process, in GiB")
    for one in checked.memory:
        if one.total > one.there >= one.weights and one.stage != "training":
            key = "sampling.rows" if one.stage == "sampling" else "judge.rows (of a reward model: judge.batch_tokens)"
            output.write(f"{one.stage} may run out of memory where many texts come to their full length: lower {key}")


def _show_disk(checked: Checked) -> None:
    disk = checked.disk
    if disk is None:
        return
    output.write()
    output.write(
        f"Disk, in GiB: {_gib(disk.models)} for the models that stay, {_gib(disk.checkpoints)} for the checkpoints of one "
        f"training, {_gib(disk.state)} for its state; at most {_gib(disk.records)} for records. {_gib(disk.free)} are free."
    )


def _show_sums(checked: Checked) -> None:
    from inward.cli.progress import clock

    todo = [stage for one in checked.iterations if not one.finished for stage in one.stages]
    written, read = sum(stage.written for stage in todo), sum(stage.read for stage in todo)
    output.write(f"Still to do, at most: {written:,} tokens written and {read:,} read.")
    if (money := _money(checked.iterations)) > 0:
        output.write(f"To pay, at most: {money:,.2f} at the prices of the recipe, unless requests have to be repeated.")
    left = seconds_left(checked.iterations)
    if left is not None:
        output.write(f"Time left: about {clock(left)} at the rates of what is done.")
    elif checked.state != "finished":
        output.write("Time left: not known before something of every stage has been done in this run directory.")


def seconds_left(iterations: Sequence[IterationForecast]) -> float | None:
    """Return the projected seconds of what is not finished; None where some stage of it was never measured."""
    seconds: list[float] = []
    for one in iterations:
        if not one.finished:
            stages = {stage.stage: stage.seconds for stage in reversed(one.stages)}  # the first judge of a stage has them
            if any(value is None for value in stages.values()):
                return None
            seconds += [value for value in stages.values() if value is not None]
    return sum(seconds)


def _money(iterations: Sequence[IterationForecast]) -> float:
    return sum(stage.money for one in iterations if not one.finished for stage in one.stages)


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}"
