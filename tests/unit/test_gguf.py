"""A GGUF file is the model that was written to it, made a folder once; what cannot be read whole is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inward.cli.main import main
from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import load_engine
from inward.errors import StorageError, UsageError
from inward.models import gguf, kept
from inward.models.identity import content_digest
from inward.models.names import local_folder, resolve
from inward.models.tokenizer import encode_chat, load_tokenizer
from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from tests.tiny_gguf import tiny_gguf

TURN = [{"role": "user", "content": "Why is the sky blue? <|im_end|>"}]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("source"), hidden=64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_unquantised_weights_and_the_chat_template_come_back(source: Path, cache: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = local_folder(str(tiny_gguf(source, tmp_path / "tiny.gguf")))
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert encode_chat(tokenizer, TURN) == encode_chat(tiny_tokenizer(), TURN)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.1)])
def test_quantised_weights_come_back_as_near_as_their_bits_allow(
    source: Path, cache: Path, tmp_path: Path, kind: str, error: float
) -> None:
    from safetensors.torch import load_file

    folder = local_folder(str(tiny_gguf(source, tmp_path / f"{kind}.gguf", quantise=kind)))
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, weights in before.items():
        assert float((weights - after[name].float()).norm() / weights.norm()) < error


def test_it_draws_what_its_folder_draws(source: Path, cache: Path, tmp_path: Path) -> None:
    engine = load_engine(local_folder(str(tiny_gguf(source, tmp_path / "tiny.gguf"))), dtype="float32")
    rounded = load_engine(_in_bfloat16(source, tmp_path / "bf16"), dtype="float32")
    request = [Request(id="a", tokens=engine.encode(TURN), k=2)]
    drawn, expected = (one.generate(request, Decoding(max_new_tokens=24), seed=3) for one in (engine, rounded))
    assert [completion.tokens for completion in drawn] == [completion.tokens for completion in expected]


def _in_bfloat16(source: Path, target: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, target)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    return target


def test_a_file_is_made_a_folder_once_and_another_file_another_folder(source: Path, cache: Path, tmp_path: Path) -> None:
    file, said = tiny_gguf(source, tmp_path / "tiny.gguf"), list[str]()
    folder = resolve(str(file), said.append)
    assert isinstance(folder, Path)
    stored = content_digest(folder)
    assert [line.split()[0] for line in said] == ["dequantising", "keeping"]
    assert resolve(str(shutil.move(file, tmp_path / "moved.GGUF")), said.append) == folder
    assert len(said) == 2
    assert resolve(str(tiny_gguf(source, tmp_path / "tiny.gguf", quantise="Q8_0"))) != folder
    shutil.rmtree(folder)
    assert content_digest(gguf.get_gguf(tmp_path / "moved.GGUF")) == stored
    names = {path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")}
    assert len(names) == 2
    assert all(name.startswith("gguf-") for name in names)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"chat_template": None}, "no chat template"),
        ({"architecture": "clip"}, "architecture clip is not supported"),
        ({"extra": {"rope_freqs.weight": np.ones(8, np.float32)}}, r"does not use: rope_freqs\.weight"),
        ({"without": "blk.1.ffn_up.weight"}, r"has no weights for model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_what_would_be_another_model_is_refused(
    source: Path, cache: Path, tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    file = tiny_gguf(source, tmp_path / "odd.gguf", **arguments)
    with pytest.raises(UsageError, match=rf"odd\.gguf cannot be used: .*{reason}.*original folder"):
        resolve(str(file))
    assert [path.name for path in (cache / "models").glob("*") if not path.name.endswith(".lock")] == []


def test_a_quantisation_that_cannot_be_undone_is_refused_before_any_work(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf as package

    def unknown(data: Any, kind: Any) -> Any:
        raise NotImplementedError(kind.name)

    file = tiny_gguf(source, tmp_path / "odd.gguf", quantise="Q8_0")
    monkeypatch.setattr(package, "dequantize", unknown)
    with pytest.raises(UsageError, match=r"quantisation F32 cannot be undone .*Q4_K_M can be read"):
        resolve(str(file))


def test_what_is_no_whole_gguf_file_is_refused(source: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        resolve(str(tmp_path / "absent.gguf"))
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        resolve(str(tmp_path / "page.gguf"))
    part = tmp_path / "large-00002-of-00003.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"part 2 of 3 .*llama-gguf-split --merge"):
        resolve(str(part))
    file = tiny_gguf(source, tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="damaged or not whole"):
        resolve(str(file))


def test_a_disk_without_room_is_named_before_any_work(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    file = tiny_gguf(source, tmp_path / "tiny.gguf")
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"cannot keep tiny\.gguf .*0\.1 GB and 0\.0 GB are free.*INWARD_CACHE"):
        resolve(str(file))


def test_the_command_line_makes_and_lists_it(
    source: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_gguf(source, tmp_path / "tiny.gguf")

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["inward", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    folder = Path(run("models", "get", str(file)).strip())
    assert load_tokenizer(folder).chat_template == CHAT_TEMPLATE
    smollm2, made = json.loads(run("models", "list", "--json"))
    assert (smollm2["name"], smollm2["folder"]) == ("smollm2", None)
    assert made == {"name": None, "model": "tiny.gguf", "licence": None, "folder": str(folder)}
    assert "tiny.gguf" in run("models", "list")
    assert run("chat", str(file), "--prompt", "Hi", "--max-new-tokens", "8", "--seed", "1").strip()
