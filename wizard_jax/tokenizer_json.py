"""A SentencePiece model as a `tokenizer.json`: what programs read that do not read the model, or read it otherwise.

(For a Mistral, transformers 5 takes a `tokenizer.model` alone without the space that LLaMA puts before a text.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import tokenizers
from tokenizers import decoders, models, normalizers, processors

from wizard_jax.sentencepiece_model import SentencePieceModel, parse
from wizard_jax.tokenizer_files import AddedToken

SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def tokenizer_json(model: bytes, added: Mapping[int, AddedToken] = MappingProxyType({})) -> bytes | None:
    """The same tokenizer, with BOS before every text; None where this format can not say what the model does.

    That is: no byte-pair encoding, a text that is normalised, no bytes for what no piece covers, or ids of `added`
    tokens that do not follow one another.
    """
    parsed = parse(model)
    if parsed.kind != "bpe" or parsed.charsmap or parsed.removes_spaces or not parsed.byte_fallback:
        return None
    pieces = [piece.text for piece in parsed.pieces]
    types = [piece.type for piece in parsed.pieces]
    unknown = pieces[types.index(_UNKNOWN)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, _merges(parsed), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = [normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if parsed.space_before_text else spaces
    )
    stripped = [decoders.Strip(" ", 1, 0)] if parsed.space_before_text else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    for kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
        named = [piece for piece, type_ in zip(pieces, types, strict=True) if type_ == kind]
        _add(made, [AddedToken(content=piece, special=kind != _USER_DEFINED) for piece in named])
    _add(made, [added[number] for number in sorted(added)])
    if any(made.token_to_id(token.content) != number for number, token in added.items()):
        return None
    bos = next((piece for piece, type_ in zip(pieces, types, strict=True) if type_ == _CONTROL), None)
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
        )
    return (made.to_str(pretty=True) + "\n").encode()


def _add(made: tokenizers.Tokenizer, tokens: Sequence[AddedToken]) -> None:
    made.add_tokens([tokenizers.AddedToken(one.content, special=one.special, normalized=False) for one in tokens])


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Which two pieces become one, the first to be merged first.

    SentencePiece merges the neighbours whose piece has the highest score; here the pair itself has a rank.
    """
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == _NORMAL}
    numbers = {piece.text: number for number, piece in enumerate(model.pieces)}
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, numbers[left], numbers[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
