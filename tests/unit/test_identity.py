"""A model's digest: it depends on every byte of the model and on nothing else, and a kept one is never that of another file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inward.models import identity
from inward.models.identity import content_digest, file_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "part" / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The names of the files that are read from now on, all being large enough and old enough to be kept."""
    names: list[str] = []
    read = identity._read_digest

    def noted(path: Path) -> str:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(identity, "_read_digest", noted)
    monkeypatch.setattr(identity, "KEPT_BYTES", 1)
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(identity, "_digests", {})
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    return names


def test_one_files_digest_is_its_sha256(folder: Path) -> None:
    weights = folder / "model.safetensors"
    assert file_digest(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_every_byte_and_every_name_counts(folder: Path) -> None:
    digests = {content_digest(folder)}
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[5000] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    digests.add(content_digest(folder))
    (folder / "part" / "vocab.txt").rename(folder / "part" / "words.txt")
    digests.add(content_digest(folder))
    (folder / "part" / "words.txt").rename(folder / "words.txt")
    digests.add(content_digest(folder))
    (folder / "config.json").unlink()
    digests.add(content_digest(folder))
    assert len(digests) == 5
    assert all(len(digest) == 64 for digest in digests)


def test_a_copy_is_the_same_model_whatever_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("about it")
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "download.json").write_text("yesterday")
    (tmp_path / "link").symlink_to(copy)
    assert content_digest(folder) == content_digest(copy) == content_digest(tmp_path / "link")


def test_nothing_is_read_twice_in_a_process_or_in_the_next_one(folder: Path, reads: list[str]) -> None:
    digest = content_digest(folder)
    assert sorted(reads) == ["config.json", "model.safetensors", "vocab.txt"]
    assert content_digest(folder) == digest
    assert len(reads) == 3
    identity._digests.clear()  # as in a new process
    assert content_digest(folder) == digest
    assert len(reads) == 3


def test_a_changed_file_is_read_again_even_with_its_old_size_and_date(folder: Path, reads: list[str]) -> None:
    digest = content_digest(folder)
    weights = folder / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(weights.read_bytes()[::-1])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    identity._digests.clear()
    assert content_digest(folder) != digest
    assert reads[3:] == ["model.safetensors"]


def test_a_file_that_has_just_been_written_is_not_kept(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second write within the same tick of the clock would go unnoticed."""
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 1000.0)
    assert content_digest(folder) == content_digest(folder)
    assert len(reads) == 6
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_stops_nothing(folder: Path, reads: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert len(content_digest(folder)) == 64


def test_small_models_leave_nothing_in_the_cache(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(identity, "KEPT_BYTES", 1 << 30)
    content_digest(folder)
    assert not (tmp_path / "cache").exists()


def test_what_is_kept_names_each_file_with_what_tells_its_versions_apart(
    folder: Path, reads: list[str], tmp_path: Path
) -> None:
    content_digest(folder)
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    rows = json.loads(kept.read_text())
    status = (folder / "config.json").stat()
    digest = hashlib.sha256(b"{}").hexdigest()
    assert rows["config.json"] == [2, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, digest]
