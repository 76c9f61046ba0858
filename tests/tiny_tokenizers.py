"""Small tokenizers of all common kinds, and chat templates of common shapes with the control tokens that they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the user asks the assistant about it.",
    "system user assistant model end start turn header id im think <b>bold</b> [a] <|not|> | > < ] [",
    "def f(x):\n    return x + 1\n\n\nWhat is the capital of France? Paris. Zürich, naïve, 東京.",
    "im_start im_end eot_id INST SYS User Assistant begin of sentence",
]
REGEX = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A chat template, the special tokens it writes (those that begin and end a text first), and its other added tokens."""

    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()


SHAPES = {
    "chatml": Shape(
        template="{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        special=("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    ),
    "llama3": Shape(
        template="{% for m in messages %}{% set t = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
        "m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set t = bos_token + t %}{% endif %}{{ t }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        special=("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "mistral": Shape(
        template="{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + eos_token }}"
        "{% else %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}",
        special=("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    "gemma": Shape(
        template="{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        plain=("<b>", "\n\n"),
    ),
    "phi": Shape(  # its tokens are put together from a role, and none of them is special
        template="{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        special=("<|endoftext|>", "<|endoftext|>"),
        plain=("<|end|>", "<|user|>", "<|system|>", "<|assistant|>"),
    ),
    "deepseek": Shape(
        template="{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set content = m['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% elif m['role'] == 'user' %}"
        "{{ '<｜User｜>' + m['content'] }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        plain=("<think>", "</think>"),
    ),
    "split marker": Shape(  # a content can complete what the template goes on with
        template="{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + 'end|>' + m['content'] | upper + '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}",
        special=("<s>", "</s>", "<|im_end|>"),
    ),
}


def byte_level(tokens: Sequence[str]) -> Any:
    """Return a byte-level BPE as GPT-2 has it, with a blank put before every stretch of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bare.train_from_iterator(CORPUS, trainer)
    return bare


def regex_bpe(tokens: Sequence[str]) -> Any:
    """Return a byte-level BPE behind a regular expression, whole words looked up first, as tiktoken's and Llama 3's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE(ignore_merges=True))
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bare.train_from_iterator(CORPUS, trainer)
    return bare


def no_merges(tokens: Sequence[str]) -> Any:
    """Return one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bare = Tokenizer(models.BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    return bare


def _llama_bpe(tokens: Sequence[str], *, vocab: Sequence[str], metaspace: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *vocab, *alphabet], show_progress=False)
    if metaspace:
        trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS, trainer)
    import json

    settings = json.loads(trained.to_str())
    settings["added_tokens"] = [entry for entry in settings["added_tokens"] if entry["content"] not in alphabet]
    bare = Tokenizer.from_str(json.dumps(settings))
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return bare


def llama_legacy(tokens: Sequence[str]) -> Any:
    """Return a BPE with byte fallback as Llama 2's: a blank before every stretch, control tokens in the vocabulary."""
    return _llama_bpe(tokens, vocab=tokens, metaspace=False)


def llama_metaspace(tokens: Sequence[str]) -> Any:
    """Return a BPE with byte fallback and a blank at the beginning of the whole text only."""
    return _llama_bpe(tokens, vocab=(), metaspace=True)


def unigram(tokens: Sequence[str]) -> Any:
    """Return a Unigram with NFKC as T5's, whose control tokens are pieces of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bare = Tokenizer(models.Unigram())
    bare.normalizer = normalizers.NFKC()
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bare.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>", *tokens], unk_token="<unk>", show_progress=False)
    bare.train_from_iterator(CORPUS, trainer)
    return bare


def word_piece(tokens: Sequence[str]) -> Any:
    """Return a lower-casing WordPiece as BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bare = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bare.normalizer = normalizers.BertNormalizer()
    bare.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bare.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", *tokens], show_progress=False)
    bare.train_from_iterator(CORPUS, trainer)
    return bare


KINDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "no merges": no_merges,
    "byte level": byte_level,
    "regex": regex_bpe,
    "llama legacy": llama_legacy,
    "llama metaspace": llama_metaspace,
    "unigram": unigram,
    "word piece": word_piece,
}


@cache
def make(kind: str, shape: str) -> Any:
    """Return a tokenizer of a kind with the template and the control tokens of a shape."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    wanted = SHAPES[shape]
    special = list(dict.fromkeys(wanted.special))
    bare = KINDS[kind](special)
    bare.add_special_tokens(special)
    bare.add_tokens([AddedToken(text, special=False, normalized=False, rstrip=shape == "phi") for text in wanted.plain])
    unknown = next((text for text in ("<unk>", "[UNK]") if bare.token_to_id(text) is not None), None)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token=wanted.special[0],
        eos_token=wanted.special[1],
        unk_token=unknown,
        additional_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = wanted.template
    return tokenizer
