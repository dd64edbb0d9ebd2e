"""Tokenizers that are trained in a moment: like LLaMA's, like Llama 3's, and ones whose pieces span words."""

from __future__ import annotations

import io
import json
import pathlib

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from wizard_jax.tokenizer import Tokenizer, train_tokenizer

CORPUS = [
    "A chat between a curious user and an assistant. USER: Hi there ASSISTANT: Hello you!",
    "Below is an instruction.\n\n### Instruction:\nSort: 3 2\n\n### Response:\n2 3",
    "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi there [/INST] Hello you! It's 1234.",
    "user\n\nHi\n\n\nassistant  Hello\t\tyou system (x) yes:) no:) x:) ::\n",
] * 20

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def like_llama(folder: pathlib.Path) -> pathlib.Path:
    train_tokenizer(CORPUS, folder / "tokenizer.model", vocab_size=420)
    return folder / "tokenizer.model"


def like_llama3(folder: pathlib.Path, *, special: tuple[str, ...] = LLAMA3_SPECIAL) -> pathlib.Path:
    """Byte-level pieces within Llama 3's words; the special tokens come after them, as there."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    bos = special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def name_ends(folder: pathlib.Path, *, bos: str, eos: str) -> None:
    """The `tokenizer_config.json` that Hugging Face folders have."""
    token = {"__type": "AddedToken", "content": bos, "lstrip": False, "rstrip": False, "special": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def train_whole_lines(folder: pathlib.Path, kind: str) -> Tokenizer:
    """A tokenizer whose pieces may hold spaces and newlines, so that they can span a prompt's end."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ASSISTANT: Hello", "Response:yes", "x ASSISTANT: x", ":\n\nx"] * 30),
        model_writer=model,
        model_type=kind,
        vocab_size=420 if kind == "bpe" else 320,
        hard_vocab_limit=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / f"{kind}.model").write_bytes(model.getvalue())
    return Tokenizer(folder / f"{kind}.model")
