"""Tokenizers that are trained in a moment, in the shape of each family's, and ones whose pieces span words."""

from __future__ import annotations

import io
import json
import pathlib

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

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
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OPT_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
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


def like_qwen(folder: pathlib.Path) -> pathlib.Path:
    """Text in NFC, every digit a word, no BOS; Qwen 3 has added tokens that are not special too."""
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN_WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer = _of_bytes(pre_tokenizers.Sequence([split, bytes_]), special=QWEN_SPECIAL)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    name_ends(folder, bos=None, eos="<|endoftext|>", kind="Qwen2Tokenizer")
    return folder / "tokenizer.json"


def like_starcoder(folder: pathlib.Path) -> pathlib.Path:
    """Every digit apart, then GPT-2's words; the special tokens come first."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    special = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>")
    tokenizer = _of_bytes(pre_tokenizers.Sequence([digits, bytes_]), special=special, first="special")
    tokenizer.save(str(folder / "tokenizer.json"))
    # It is published as GPT2Tokenizer, for which transformers 5 leaves the rule on digits out.
    name_ends(folder, bos="<|endoftext|>", eos="<|endoftext|>")
    return folder / "tokenizer.json"


def like_opt(folder: pathlib.Path) -> pathlib.Path:
    """GPT-2's pieces after four of OPT's own, in two files, as OPT's folders have them."""
    tokenizer = _of_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), special=OPT_FIRST, first="special")
    tokenizer.model.save(str(folder))
    end = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, "errors": "replace"}
    config |= {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": {**end, "content": "<pad>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"})
    )
    return folder / "vocab.json"


def like_galactica(folder: pathlib.Path) -> pathlib.Path:
    """Digits and punctuation apart, pieces that never span a marker of its corpus; its config names no ends."""
    marker = pre_tokenizers.Split("SPL1T-TH1S-Pl3A5E", behavior="removed")
    apart = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    special = ("<s>", "<pad>", "</s>", "<unk>", "[START_REF]", "[END_REF]")
    tokenizer = _of_bytes(pre_tokenizers.Sequence([marker, *apart]), special=special, first="special")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder / "tokenizer.json"


def with_added(file: pathlib.Path, **contents: bool) -> pathlib.Path:
    """LLaMA's with tokens added after its own, as transformers writes them; content -> whether it is special."""
    file.with_name("tokenizer_config.json").unlink(missing_ok=True)  # of an earlier call
    size = Tokenizer(file).vocab_size
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(size + i): {"content": content, **plain, "special": special}
        for i, (content, special) in enumerate(contents.items())
    }
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    file.with_name("tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    return file


def _of_bytes(
    split: pre_tokenizers.PreTokenizer, *, special: tuple[str, ...], first: str = "pieces"
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=list(special) if first == "special" else [],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def name_ends(folder: pathlib.Path, *, bos: str | None, eos: str, kind: str = "PreTrainedTokenizerFast") -> None:
    """The `tokenizer_config.json` that Hugging Face folders have."""
    token = {"__type": "AddedToken", "content": bos, "lstrip": False, "rstrip": False, "special": True}
    config = {"tokenizer_class": kind, "bos_token": None if bos is None else token, "eos_token": eos}
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
