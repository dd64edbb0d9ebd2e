"""Writing a GGUF file, one tensor in memory at a time, and reading it back by the reader of the `gguf` package."""

from __future__ import annotations

import os
import pathlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np

from wizard_jax.chat import ChatFormat, end_id
from wizard_jax.chat_formats import Special
from wizard_jax.convert.gguf.network import ARCHITECTURES, GgufTensor, Quantisation, tensors, write_sizes
from wizard_jax.convert.gguf.vocabulary import Vocabulary, write_vocabulary
from wizard_jax.convert.read_back import drop_cached
from wizard_jax.convert.tensors import Array, ConversionError, Read
from wizard_jax.convert.verify import VerificationError
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer

FILE_TYPES: Mapping[Quantisation, gguf.LlamaFileType] = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}

_LARGEST: Mapping[gguf.GGMLQuantizationType, float] = {
    gguf.GGMLQuantizationType.F16: float(np.finfo(np.float16).max),
    gguf.GGMLQuantizationType.Q8_0: 127.0 * float(np.finfo(np.float16).max),
}
"""The magnitudes that a type can hold: Q8_0's scales are float16."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A tensor as it lies in a file."""

    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first."""
    crc32: int
    """Of its bytes."""


Inventory = Mapping[str, Held]
"""Every tensor of a file by name."""


def write_gguf(
    path: pathlib.Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    read: Read,
    *,
    vocabulary: Vocabulary,
    chat_format: ChatFormat,
    quantisation: Quantisation,
    name: str,
) -> Inventory:
    """Writes and syncs the file. Raises ConversionError: a value that is not finite, or too large for its type."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.family]])
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_sizes(writer, model)
    write_vocabulary(writer, vocabulary)
    _write_ends(writer, tokenizer, chat_format=chat_format)
    writer.add_chat_template(chat_format.template)
    planned = tensors(model, read, quantisation=quantisation)
    for tensor in planned:
        shape, kind = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type), np.dtype(np.uint8)
        writer.add_tensor_info(tensor.name, shape, kind, int(np.prod(shape)), raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        held = {}
        for tensor in planned:
            content = quantised(tensor)
            held[tensor.name] = Held(type=tensor.type, shape=tensor.shape, crc32=zlib.crc32(content.data))
            writer.write_tensor_data(content)
    finally:
        writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return held


def begins_with_bos(chat_format: ChatFormat) -> bool:
    """Whether every conversation does, so that a reader puts it before any text."""
    return chat_format.first[0] == Special("bos")


def _write_ends(writer: gguf.GGUFWriter, tokenizer: Tokenizer, *, chat_format: ChatFormat) -> None:
    """Generation stops at EOS and at what ends an answer, where that is another token."""
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_eot_token_id(end_id(chat_format, tokenizer))
    writer.add_add_bos_token(begins_with_bos(chat_format))
    writer.add_add_eos_token(False)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)


def quantised(tensor: GgufTensor) -> Array:
    """The bytes of a tensor in its type: uint8 [rows, bytes of a row]. Raises ConversionError."""
    values = np.ascontiguousarray(tensor.values(), np.float32)
    if values.shape != tensor.shape:
        raise ConversionError(f"{tensor.name}: parameters have shape {values.shape}, the config says {tensor.shape}")
    if not np.isfinite(values).all():
        raise ConversionError(f"{tensor.name}: holds values that are not finite")
    largest = float(np.abs(values).max())
    if largest > _LARGEST.get(tensor.type, np.inf):
        raise ConversionError(
            f"{tensor.name}: holds {largest:g}, which is too large for {tensor.type.name}: use --quantisation BF16"
        )
    content: Array = gguf.quantize(values, tensor.type)
    return content.view(np.uint8)


def check_gguf(path: pathlib.Path, written: Inventory) -> str:
    """Reads every tensor back; returns what was done. Raises VerificationError: the file holds something else."""
    drop_cached(path)
    found = {
        tensor.name: Held(
            type=tensor.tensor_type,
            shape=tuple(tensor.shape.tolist()[::-1]),
            crc32=zlib.crc32(np.ascontiguousarray(tensor.data).data),
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
    wrong = sorted(name for name in {*found, *written} if found.get(name) != written.get(name))
    if wrong:
        raise VerificationError(
            f"the disk holds another type, shape or bytes than were written, of: {', '.join(wrong)}"
        )
    return f"all {len(written):,} tensors were read back from the disk by the gguf package and are what was written"
