"""The optional packages that a recipe needs, with the versions that are here and those that are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from inward.config import DatasetSource, Recipe, VerifiableJudge
from inward.config.engines import VllmSettings
from inward.errors import MissingExtraError, UsageError
from inward.stages.footprint import judges_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package of an extra: the `version` that is installed (None: none) and what versions will do ("" for any)."""

    name: str
    extra: str
    version: str | None
    wanted: str


def extras_of(recipe: Recipe) -> list[str]:
    """Return the extras of this package that a recipe makes use of."""
    training = recipe.training
    uses = {
        "verifiable": any(isinstance(judge, VerifiableJudge) for _, judge in judges_of(recipe)),
        "datasets": any(isinstance(source, DatasetSource) for source in recipe.prompts.sources),
        "vllm": isinstance(recipe.sampling.engine_options, VllmSettings),
        "ray": recipe.execution.ray is not None,
        "bitsandbytes": training.optimiser == "adamw_8bit" or training.quantise is not None,
    }
    return [extra for extra, used in uses.items() if used] + list(training.trackers)


def packages_of(recipe: Recipe) -> list[Package]:
    """Return the packages of the extras that a recipe makes use of."""
    return [
        Package(name=wanted.name, extra=extra, version=_version(wanted.name), wanted=str(wanted.specifier))
        for extra in extras_of(recipe)
        for wanted in _requirements(extra)
    ]


def check_package(package: Package) -> None:
    """Raise MissingExtraError for a package that is not there, UsageError for one of a version that will not do."""
    from packaging.specifiers import SpecifierSet

    if package.version is None:
        raise MissingExtraError(package.name, package.extra)
    if not SpecifierSet(package.wanted).contains(package.version, prereleases=True):
        raise UsageError(
            f"{package.name} {package.version} is installed, and {package.name}{package.wanted} is needed: "
            f"pip install --upgrade 'inward[{package.extra}]'"
        )


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield what an extra asks for on this machine, by the metadata of the installed package."""
    from packaging.requirements import Requirement

    for line in metadata.requires("inward") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and wanted.marker.evaluate({"extra": extra}) and not wanted.marker.evaluate({"extra": ""}):
            yield wanted


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
