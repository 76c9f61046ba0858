"""Runs and models in a store, against an S3 server: whole or not at all, by one writer, from any machine, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inward.cli.main import app
from inward.errors import MissingExtraError, RunLockedError, StorageError, UsageError
from inward.models import origins
from inward.models.names import config_folder, local_copy, local_folder
from inward.runs import claim, mirror
from inward.runs.directory import RunDir
from inward.runs.mirror import Mirror, mirrored
from inward.runs.opening import locked, open_existing, run_at
from inward.runs.place import Place
from inward.runs.progress import Silent
from inward.runs.working_copy import copy_folder
from inward.store.index import INDEX, Index, read_finished, read_index, whole_folder_of
from inward.store.models import fetched_model
from inward.store.remote import Store, Unreachable, open_store
from tests.integration.test_kill import Forks, contents, write_recipe
from tests.s3 import Server, serve
from tests.tiny import tiny_model

MODEL = "thinking/iter_001/model"
REFUSED = (403, "AccessDenied")


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(s3: Server) -> Iterator[Server]:
    yield s3
    s3.refuse, s3.after = None, 0


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}")
    server: Server = request.getfixturevalue("server")
    return open_store(f"{server.bucket}/{tmp_path.name}")


@pytest.fixture
def s3_store(server: Server, tmp_path: Path) -> Store:
    return open_store(f"{server.bucket}/{tmp_path.name}")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def files_of(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def mirror_of(root: Path, store: Store, index: Index | None = None) -> Mirror:
    """Return a mirror whose lock this test holds, without its threads."""
    held = claim.take(store, "mine")
    return Mirror(root, held, Silent(), index or Index("mine", {}))


def test_objects_are_written_read_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    assert store.read("a/x") is None
    assert store.list() == {}
    assert store.create("a/x", b"1")
    assert not store.create("a/x", b"2")
    assert store.read("a/x") == b"1"
    before = store.list()
    store.write("a/x", b"3")
    assert [size for size, _ in store.list().values()] == [1]
    assert store.list() != before, "another content is told by another word"
    write(tmp_path, {"up": "text"})
    store.upload("b", tmp_path / "up")
    assert store.download("b", tmp_path / "down")
    assert (tmp_path / "down").read_text() == "text"
    assert not store.download("c", tmp_path / "none")
    store.delete(["a/x", "b", "never"])
    assert store.list() == {}


BEFORE = {
    "config.json": "recipe",
    "costs.jsonl": "1\n",
    "thinking/iter_001/outputs/part-00000-of-00002-aa.parquet": "rows",
    "thinking/iter_001/checkpoints/epoch_01/config.json": "c1",
    "thinking/iter_001/checkpoints/epoch_01/model.safetensors": "w1",
    "thinking/iter_001/checkpoints/state/step_00000002/masters.safetensors": "old",
    "thinking/iter_001/checkpoints/state/step_00000002/moments.safetensors": "old",
}
AFTER = {
    "config.json": "recipe",
    "costs.jsonl": "1\n2\n",
    "thinking/iter_001/outputs/part-00000-of-00002-aa.parquet": "rows",
    "thinking/iter_001/outputs/part-00001-of-00002-bb.parquet": "more",
    f"{MODEL}/config.json": "c1",
    f"{MODEL}/model.safetensors": "w1",
    "thinking/iter_001/checkpoints/state/step_00000002/masters.safetensors": "other",
    "thinking/iter_001/checkpoints/state/step_00000002/moments.safetensors": "other",
    "thinking/iter_001/evaluation.json": "chosen",
}
STATE = "thinking/iter_001/checkpoints/state/step_00000002"


def once(files: dict[str, str]) -> dict[str, str]:
    """Return what no kill may mix: all but what grows or is replaced in one piece under a name that both states have."""
    return {name: text for name, text in files.items() if name != "costs.jsonl"}


def test_a_publishing_that_is_cut_off_anywhere_leaves_the_state_before_or_after(
    server: Server, s3_store: Store, tmp_path: Path
) -> None:
    """The state that is written anew under its name may be missing in between, but is never half one and half the other."""
    without_state = {name: text for name, text in BEFORE.items() if not name.startswith(STATE)}
    seen: set[str] = set()
    for count in range(40):
        here, there = tmp_path / f"here-{count}", tmp_path / f"there-{count}"
        store = open_store(f"{s3_store.url}/{count}")
        write(here, BEFORE)
        own = mirror_of(here, store)
        assert own.publish()
        shutil.rmtree(here)
        write(here, AFTER)
        server.refuse, server.after = ({"PUT", "DELETE"}, *REFUSED), count
        try:
            finished = own.publish()
        except StorageError:
            finished = False
        server.refuse = None
        read_finished(store, there, weights=True)
        found = once(files_of(there))
        states = {"before": once(BEFORE), "between": once(without_state), "after": once(AFTER)}
        (name,) = [name for name, files in states.items() if files == found] or [f"a mixture: {found}"]
        seen.add(name)
        assert name in states, name
        if name != "after":
            with pytest.raises(UsageError, match="not finished"):
                fetched_model(f"{store.url}/{MODEL}")
        if finished:
            break
    assert seen == {"before", "between", "after"}
    assert {name for name in store.list() if not name.startswith(".inward")} == set(AFTER), "what is gone is deleted there too"


def test_what_is_half_made_here_is_not_published(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "run"
    write(root, {"config.json": "recipe", f"thinking/iter_001/.tmp-model/{'model.safetensors'}": "half", ".lock": ""})
    write(root, {"thinking/.tmp-iter.json": "half"})
    assert mirror_of(root, store).publish()
    index = read_index(store)
    assert index is not None
    assert set(index.files) == {"config.json"}


def test_a_store_that_is_gone_for_a_while_gets_it_all_later(
    server: Server, s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    write(root, BEFORE)
    own = mirror_of(root, s3_store)
    server.refuse = ({"PUT"}, 500, "InternalError")
    assert not own.attempt()
    own.check()  # the run goes on meanwhile
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.0)
    with pytest.raises(StorageError, match="run the same command again: everything finished is kept in"):
        own.check()
    server.refuse = None
    assert own.attempt()
    own.check()
    read_finished(s3_store, tmp_path / "other", weights=True)
    assert files_of(tmp_path / "other") == BEFORE


def test_a_second_writer_is_refused_and_a_dead_one_is_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "WATCH_S", 0.01)
    first = claim.take(store, "mine")
    with pytest.raises(RunLockedError, match=r"is working on .* or remove .*lock.json"):
        claim.take(store, "another")
    again = claim.take(store, "mine")  # who holds the copy's own lock knows that the one before it is dead
    with pytest.raises(RunLockedError, match="taken over"):
        first.require()
    first.release()
    again.require()  # it gave back nothing that was not its own
    monkeypatch.setattr(claim, "DEAD_S", 0.0)
    other = claim.take(store, "another")
    with pytest.raises(RunLockedError, match="taken over"):
        again.require()
    other.release()
    with pytest.raises(RunLockedError, match="removed"):
        other.require()


def test_a_holder_that_gives_signs_of_life_is_not_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim.take(store, "mine")
    monkeypatch.setattr(claim, "DEAD_S", -1.0)
    monkeypatch.setattr(time, "sleep", lambda _: held._write())  # its clock may be behind, but it writes
    with pytest.raises(RunLockedError):
        claim.take(store, "another")


def test_a_writer_that_lost_the_lock_publishes_nothing_and_stops(store: Store, tmp_path: Path) -> None:
    def lose() -> None:
        store.delete([claim.LOCK])
        write(tmp_path / "run", BEFORE)

    with pytest.raises(RunLockedError, match="removed"):
        during(tmp_path / "run", store, lose)
    index = read_index(store)
    assert index is not None
    assert index.files == {}


def during(root: Path, store: Store, do: Callable[[], None]) -> None:
    with mirrored(root, store.url, Silent()):
        do()


def work(root: Path, store: Store, files: dict[str, str]) -> None:
    during(root, store, lambda: write(root, files))


def test_the_newest_of_copy_and_store_is_gone_on_with(store: Store, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    work(here, store, {"config.json": "recipe", "a.parquet": "1"})
    write(here, {"b.parquet": "finished, but killed before it was published"})
    work(here, store, {})
    work(there, store, {"c.parquet": "2"})
    assert files_of(there).keys() == {".store.json", "config.json", "a.parquet", "b.parquet", "c.parquet"}
    write(here, {"late.parquet": "of a run that went on elsewhere"})
    work(here, store, {})
    assert files_of(here).keys() == files_of(there).keys()
    assert files_of(here)["c.parquet"] == "2"


def test_a_copy_whose_files_are_gone_takes_nothing_from_the_store(store: Store, tmp_path: Path) -> None:
    work(tmp_path / "run", store, BEFORE)
    shutil.rmtree(tmp_path / "run")
    work(tmp_path / "run", store, {})
    assert {name: text for name, text in files_of(tmp_path / "run").items() if name != ".store.json"} == BEFORE


def test_a_store_that_was_emptied_or_holds_something_else_is_refused(store: Store, tmp_path: Path) -> None:
    store.write("thesis.txt", b"")
    with pytest.raises(UsageError, match=r"not empty \(thesis.txt\) and is no run"):
        work(tmp_path / "run", store, {})
    store.delete(["thesis.txt"])
    work(tmp_path / "run", store, BEFORE)
    store.delete(list(store.list()))
    with pytest.raises(UsageError, match=r"holds no run any more, but .* holds a copy"):
        work(tmp_path / "run", store, {})
    assert BEFORE.items() <= files_of(tmp_path / "run").items()


def test_an_object_that_was_damaged_is_told_and_not_trained_on(store: Store, tmp_path: Path) -> None:
    work(tmp_path / "run", store, AFTER)
    store.write(f"{MODEL}/model.safetensors", b"xx")
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        work(tmp_path / "elsewhere", store, {})
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        fetched_model(f"{store.url}/{MODEL}")


def test_an_error_in_a_run_leaves_what_was_finished_in_the_store(store: Store, tmp_path: Path) -> None:
    def fail() -> None:
        write(tmp_path / "run", BEFORE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        during(tmp_path / "run", store, fail)
    index = read_index(store)
    assert index is not None
    assert set(index.files) == set(BEFORE)
    assert store.read(claim.LOCK) is None


def test_the_run_stops_at_the_next_stage_when_the_store_refuses(
    server: Server, s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "INTERVAL_S", 0.01)

    def go_on() -> None:
        with mirrored(tmp_path / "run", s3_store.url, Silent()) as reporter:
            server.refuse = ({"PUT"}, *REFUSED)
            write(tmp_path / "run", BEFORE)
            for _ in range(1000):
                reporter.begin(Place(arm="thinking", iteration=1, stage="outputs"), 1, "outputs")
                time.sleep(0.01)
            pytest.fail("no stage was stopped")

    with pytest.raises(StorageError, match=r"the store refuses it .* everything finished is kept in"):
        go_on()
    assert BEFORE.items() <= files_of(tmp_path / "run").items()


@pytest.mark.parametrize(
    ("code", "expected"), [(REFUSED, "the store refuses it"), ((500, "InternalError"), "See that the store is up")]
)
def test_a_store_that_takes_nothing_is_told_at_once(
    server: Server, s3_store: Store, tmp_path: Path, code: tuple[int, str], expected: str
) -> None:
    server.refuse = ({"PUT"}, *code)
    with pytest.raises(StorageError, match=expected):
        work(tmp_path / "run", s3_store, BEFORE)


def test_a_bucket_that_does_not_exist(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such bucket"):
        work(tmp_path / "run", open_store("s3://no-such-bucket-at-all/run"), {})
    with pytest.raises(UsageError, match="holds no model"):
        fetched_model("s3://no-such-bucket-at-all/model")
    with pytest.raises(UsageError, match="is not a run directory"):
        open_existing("s3://no-such-bucket-at-all/run")


def test_a_server_that_does_not_answer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unreachable, match="can be reached from here"):
        open_store(f"{server.bucket}/run").write("a", b"")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(("url", "package", "extra"), [("s3://bucket/run", "s3fs", "s3"), ("gs://bucket/run", "gcsfs", "gs")])
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed. .*inward\[{extra}\]"):
        open_store(url)


def test_a_store_of_no_known_kind() -> None:
    with pytest.raises(UsageError, match="no URL of a store"):
        open_store("ipfs2://bucket/run")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert run_at(f"file://{tmp_path}/run").root == tmp_path / "run"
    model = tiny_model(tmp_path / "seed")
    assert local_folder(model.as_uri()) == model
    with pytest.raises(UsageError, match="names the machine 'host'"):
        run_at("file://host/run")


def test_a_model_in_a_store_is_fetched_once_and_again_when_it_is_another(store: Store, tmp_path: Path) -> None:
    seed = tiny_model(tmp_path / "seed")
    write(seed, {"README.md": "needless", "code.py": "print(1)"})
    for file in seed.iterdir():
        store.upload(file.name, file)
    kept = local_folder(store.url)
    assert {path.name for path in kept.iterdir()} == {path.name for path in seed.iterdir()} - {"README.md", "code.py"}
    assert all((seed / path.name).read_bytes() == path.read_bytes() for path in kept.iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert local_folder(store.url) == kept
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == stamps
    assert (local_folder(store.url, trust_remote_code=True) / "code.py").exists()
    described = config_folder(store.url)
    assert {path.name for path in described.iterdir()} == {
        path.name for path in kept.iterdir() if path.suffix != ".safetensors"
    }
    store.upload("config.json", tiny_model(tmp_path / "other", layers=1) / "config.json")
    assert local_folder(store.url) != kept
    store.delete(["config.json"])
    with pytest.raises(UsageError, match=r"holds no config.json"):
        local_folder(store.url)


def test_a_worker_on_another_machine_fetches_what_it_is_given(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(origins.ORIGINS, "{}")
    root, seed = tmp_path / "run", tiny_model(tmp_path / "seed")
    upstream = open_store(f"{store.url}/seed")
    for file in seed.iterdir():
        upstream.upload(file.name, file)
    fetched = local_folder(upstream.url)
    work(root, open_store(f"{store.url}/run"), AFTER)
    given = [root / MODEL, fetched, seed]
    assert [local_copy(folder) for folder in given] == given, "the machine that has them takes them as they are"
    monkeypatch.setattr(origins.platform, "node", lambda: "another")
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    model, copied, shared = map(local_copy, given)
    assert model != root / MODEL
    assert files_of(model) == files_of(root / MODEL)
    assert copied != fetched
    assert {file.name for file in copied.iterdir()} == {file.name for file in seed.iterdir()}
    assert shared == seed, "a folder that was made from nothing is on a shared file system"


def test_a_worker_waits_for_a_model_that_is_still_on_its_way(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    write(root, BEFORE)
    own = mirror_of(root, store)
    own.publish()
    write(root, AFTER)
    monkeypatch.setattr(time, "sleep", lambda _: own.publish())
    assert files_of(fetched_model(f"{store.url}/{MODEL}", patience_s=60.0)) == {"config.json": "c1", "model.safetensors": "w1"}


@pytest.mark.slow
def test_a_run_in_a_store_survives_kills_refusals_and_machines(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine after machine works on it for a while; the last ends it. It equals a run on one machine, file by file."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("INWARD_CACHE", str(cache))
    monkeypatch.setenv("INWARD_TEST_PUBLISH_S", "0.05")
    seed = open_store(f"{server.bucket}/seed")
    for file in tiny_model(tmp_path / "seed", spread=0.05).iterdir():
        seed.upload(file.name, file)
    recipe = write_recipe(tmp_path, seed.url)
    forks = Forks(tmp_path / "log.txt")
    try:
        _kill_and_compare(server, forks, recipe, tmp_path, cache)
    finally:
        forks.close()


def _kill_and_compare(server: Server, forks: Forks, recipe: Path, tmp_path: Path, cache: Path) -> None:
    whole, url = tmp_path / "whole", f"{server.bucket}/broken"
    assert forks.run("run", str(recipe), "--out", whole.as_uri()) == {"code": 0}, forks.log.read_text()
    expected = contents(whole)
    assert all(whole_folder_of(name) for name in expected if name.endswith((".safetensors", ".jinja"))), sorted(expected)

    copy, store, killed = cache / "stores" / "*" / "work" / "broken", open_store(url), 0
    instants = random.Random(3)
    for trigger in ("thinking/iter_001/outputs/*", "thinking/iter_001/checkpoints/state/*", "direct/iter_001/*model"):
        answer = forks.run("run", str(recipe), "--out", url, after=str(copy / trigger), delay=instants.uniform(0.0, 0.4))
        assert answer in ({"signal": signal.SIGKILL}, {"code": 0}), forks.log.read_text()
        killed += answer == {"signal": signal.SIGKILL}
        assert files_in_index(store) - set(expected) == _passing(store) - set(expected), forks.log.read_text()
        shutil.rmtree(cache / "stores")  # the next one is another machine
        if killed == 1 and answer != {"code": 0}:
            assert forks.run("run", str(recipe), "--out", url) == {"code": 2}
            assert "last sign of life" in forks.log.read_text()
        store.delete([claim.LOCK])
    assert killed >= 2, forks.log.read_text()

    server.refuse, server.after = ({"PUT"}, *REFUSED), 12  # in the middle of the work
    assert forks.run("run", str(recipe), "--out", url) == {"code": 1}
    assert "the store refuses it" in forks.log.read_text()
    assert "everything finished is kept in" in forks.log.read_text()
    server.refuse = None
    assert forks.run("run", str(recipe), "--out", url) == {"code": 0}, forks.log.read_text()
    (folder,) = (cache / "stores").glob("*/work/broken")
    for root in (folder, tmp_path / "fetched"):
        if root != folder:
            read_finished(store, root, weights=True)
        found = contents(root)
        assert sorted(found) == sorted(expected)
        assert [name for name, content in expected.items() if found[name] != content] == []
    assert {name for name in store.list() if not name.startswith(".inward/")} == set(expected)
    _read_by_commands(url, recipe, tmp_path)


def files_in_index(store: Store) -> set[str]:
    index = read_index(store)
    return set(index.files) if index else set()


def _passing(store: Store) -> set[str]:
    """Return what is published while it is of use, and gone from a finished run."""
    return {name for name in files_in_index(store) if "/checkpoints/" in name}


def _read_by_commands(url: str, recipe: Path, tmp_path: Path) -> None:
    cli = CliRunner()
    checked = cli.invoke(app, ["run", str(recipe), "--out", url, "--check", "--json"])
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["state"] == "finished"
    missing = cli.invoke(app, ["run", str(recipe), "--out", "s3://no-such-bucket-at-all/run", "--check"])
    assert "there is no such bucket" in str(missing.exception), missing.output
    status = cli.invoke(app, ["status", url, "--json"])
    assert status.exit_code == 0, status.output
    document = json.loads(status.stdout)
    assert document["finished"]
    assert document["run"] == url
    assert not list(copy_folder(url, "read").rglob("*.safetensors")), "status needs no weights"
    assert cli.invoke(app, ["show", url, "--json"]).exit_code == 0
    assert cli.invoke(app, ["audit", url, "--json"]).exit_code == 0
    exported = cli.invoke(app, ["export", url, "model", "--out", str(tmp_path / "exported")])
    assert exported.exit_code == 0, exported.output
    from inward.cli.chat import taught
    from inward.thought import BUILT_IN

    fetched = fetched_model(f"{url}/{MODEL}")
    for model in (tmp_path / "exported", fetched):
        told = taught(model)
        assert told is not None
        assert told[0].name == BUILT_IN["specific"].name
    assert all((fetched / file.name).read_bytes() == file.read_bytes() for file in fetched.iterdir())


def test_the_lock_on_this_machine_comes_first(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path))
    run = run_at(store.url)
    assert run == RunDir(copy_folder(store.url, "work"), store.url)
    with locked(run, Silent()), pytest.raises(RunLockedError, match="another process is working on"), locked(run, Silent()):
        pass
    assert store.read(INDEX) is not None
    assert os.listdir(run.root)
