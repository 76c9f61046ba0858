"""What is stored is there whole or not at all, and a failure of the disk is one message with a remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inward.errors import StorageError
from inward.storage import read_json, remove, remove_leftovers, storage_errors, whole_folder, write_bytes, write_json


def test_a_folder_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with whole_folder(out) as folder:
        write_json(folder / "inner" / "a.json", {"é": 1})
        assert not out.exists()
    assert read_json(out / "inner" / "a.json") == {"é": 1}
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "out") as folder:
            write_bytes(folder / "a", b"a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_wherever_they_are_and_nothing_else_does(tmp_path: Path) -> None:
    kept = tmp_path / "arm" / "part-0.parquet"
    write_bytes(kept, b"whole")
    for name in (".tmp-config.json", "arm/.tmp-part-1.parquet", "arm/.tmp-epoch_01/.tmp-a", "arm/.tmp-removed-state/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path, "config")
    assert not (tmp_path / ".tmp-config.json").exists()
    assert (tmp_path / "arm" / ".tmp-part-1.parquet").exists()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]


def test_a_leftover_of_a_folder_does_not_stop_the_next_try(tmp_path: Path) -> None:
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out" / "stale").write_text("half")
    with whole_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    remove(tmp_path / "out")
    remove(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EISDIR, f"{os.strerror(errno.EISDIR)}: choose")],
)
def test_the_system_and_shutil_and_safetensors_lead_to_the_same_remedy(number: int, said: str, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    why = os.strerror(number)
    errors: list[Exception] = [OSError(number, why)]
    if number != errno.EISDIR:
        errors.append(shutil.Error([("a", "b", str(OSError(number, why)))]))
        errors.append(SafetensorError(f"Error while serializing: I/O error: {why} (os error {number})"))
    for error in errors:
        with pytest.raises(StorageError, match=said), storage_errors(tmp_path):
            raise error


def test_storage_loads_no_safetensors_and_needs_none() -> None:
    code = """
import sys
from pathlib import Path
from inward.errors import StorageError
from inward.storage import write_bytes
try:
    write_bytes(Path("/dev/null/file"), b"")
except StorageError:
    print("told", "safetensors" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "told False\n"
