"""Functions by name: those of this package that a table names, and those of a user's own file or package.

A user's function is named by `"file.py:name"`, a path as any other in a recipe, or by `"package.module:name"`, which has to be
installed. A file is run as it stands and by itself: its folder is not searched for modules, so helpers go into the same file or
into a package. Whatever goes wrong inside is shown with the user's own file and line. Only a recipe names such functions, and
a recipe is the user's own; no code that comes with a model is ever run through here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from inward.errors import UsageError

SHOWN_FRAMES = 8
"""How many of the innermost frames of the user's code an error shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A function of a user. `reference` is how the recipe names it, `file` where it stands, `digest` the SHA-256 of `file`."""

    reference: str
    function: Callable[..., Any]
    file: Path
    digest: str

    @property
    def name(self) -> str:
        """What identifies the function with its content, wherever the file lies: `file.py:name@digest`."""
        where, _, function = self.reference.rpartition(":")
        return f"{Path(where).name if where.endswith('.py') else where}:{function}@{self.digest[:12]}"

    @property
    def where(self) -> str:
        """The file and the line at which the function is defined (the file alone for what is no plain function)."""
        code = getattr(self.function, "__code__", None)
        return f"{self.file}, line {code.co_firstlineno}" if code is not None else str(self.file)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function. Raises UsageError, with the user's own file and line, for whatever it raises."""
        with user_errors(self.reference, self.file):
            return self.function(*arguments)


def named(reference: str) -> Any:
    """Return what "package.module:name" names in this package. The module is imported here and not before."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def user_function(reference: str) -> UserFunction:
    """Return the function that a recipe names. Raises UsageError where there is none, or where its file cannot be run."""
    where, colon, name = reference.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise UsageError(f"function = {reference!r} must be 'file.py:name' or 'package.module:name'")
    is_file = where.endswith(".py")
    file = Path(where).expanduser().absolute() if is_file else _file_of_module(where, reference)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"function = {reference!r}: {file} cannot be read: {error.strerror or error}") from error
    with user_errors(reference, file):
        module = _run_file(file, digest) if is_file else importlib.import_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        there = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"{file} has no function {name!r}; it has {', '.join(there) or 'none'}")
    return UserFunction(reference=reference, function=function, file=file, digest=digest)


@contextmanager
def user_errors(reference: str, file: Path) -> Iterator[None]:
    """Turn whatever a user's code raises into a UsageError that shows the lines of that code, and none of ours."""
    try:
        yield
    except Exception as error:  # a user's code may raise anything, and the user is shown all of it
        raise UsageError(f"function = {reference!r} failed at {_described(error, file)}") from error


def _described(error: Exception, file: Path) -> str:
    """Return `file, line N: the error` and, below it, the frames from the first one of the file on."""
    problem = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}: {problem}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [number for number, frame in enumerate(frames) if Path(frame.filename) == file]
    if not own:
        return f"{file}: {problem}"
    shown = "".join(traceback.format_list(frames[own[0] :][-SHOWN_FRAMES:])).rstrip()
    return f"{file}, line {frames[own[-1]].lineno}: {problem}\n{shown}"


def _file_of_module(module: str, reference: str) -> Path:
    """Return the file of an installed module without running it (only the packages around it are run)."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UsageError(f"function = {reference!r}: the package of {module!r} cannot be imported: {error}") from error
    if spec is None or not spec.has_location or spec.origin is None:
        raise UsageError(
            f"function = {reference!r}: there is no module {module!r} here. Install the package, or name a file: 'file.py:name'"
        )
    return Path(spec.origin)


def _run_file(file: Path, digest: str) -> ModuleType:
    """Run a file as a module of its own, whose name holds its digest, so that no other module can be taken for it."""
    name = f"inward_user_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "the file ends in .py"
    assert spec.loader is not None, "a file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
