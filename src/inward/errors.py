"""The errors a user can cause or meet; each message says what happened and what to do next."""

from __future__ import annotations


class InwardError(Exception):
    """Something a person can act on. `exit_code` is what the command line returns: 1 unless said otherwise."""

    exit_code = 1


class UsageError(InwardError):
    """A setting, a file or an argument is wrong: the user's to mend. Exit code 2."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is not installed. The message holds the exact install command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'inward[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return (type(self), (self.package, self.extra))  # an error of a stage travels from its process to the main one


class RunLockedError(UsageError):
    """Another living process is writing to this run directory."""


class RunChangedError(UsageError):
    """The recipe differs from the one that the run directory was made with."""


class StorageError(InwardError):
    """A file could not be written (full disk, no permission). Everything finished before is kept."""


class EngineError(InwardError):
    """Whatever runs the model cannot draw, or no longer runs the model that it should. Everything finished before is kept."""


class JudgeError(InwardError):
    """The judge cannot be used or scored nothing at all."""


class TrainingError(InwardError):
    """Training cannot go on: a loss that is not finite, no pairs to learn from, and the like."""


class ShortOfMemory(TrainingError):
    """Memory ran out in a step that processes share: they have to start again, and will take less at a time."""
