"""The folder of `wizard import`: a Hugging Face folder of which every byte was checked.

model-*.safetensors   as they came, with the index if there is one; where the vocabulary grew, with its new rows
weights.json          size and CRC-32C of each, as they were read back from the disk
tokenizer.*           and generation_config.json, if there is one
model.gin             the network as settings, for a training config to include
config.json           after all that it needs, so that nobody loads half a model
identity.json  config.gin  complete.json   of the stage (see configs/folder.py)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from etils import epath

from configs.folder import fsync_folder, naming, read_complete, write_atomically
from configs.loader import setting
from configs.parsing import format_binding
from configs.trees import entries
from wizard_jax.convert.inventory import Folder, weight_files
from wizard_jax.convert.read_back import ReadBack
from wizard_jax.convert.resizing import Chunk, Growth, grown_file, grown_size
from wizard_jax.convert.safetensors_file import FLOATS, Stored, all_finite
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.hosts.group import ALONE, Hosts
from wizard_jax.model.config import ModelConfig
from wizard_jax.progress import Progress

MANIFEST = "weights.json"
SETTINGS = "model.gin"
_CHUNK = 1 << 20  # bytes; what is read stays in a core's cache until it is written
_MINUTES = 60.0  # that hosts wait for one another while files are read through

Sums = dict[str, dict[str, Any]]


class NotFinite(ConversionError):
    """Weights that hold NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What `wizard import` was told, and the network that it found."""

    source: str = setting(doc="the Hugging Face folder, or hf:// name at a commit")
    model: ModelConfig = setting(doc="read from its config.json; its vocabulary may have grown since")
    chat_format: str = setting("", doc="the format that the model was trained with; '' if none is known")
    added_tokens: tuple[str, ...] = setting((), doc="special tokens that its tokenizer was given here")
    grown_from: int = setting(0, doc="rows of its embedding before the vocabulary grew; 0: it did not")


def model_settings(config: ImportConfig) -> str:
    """`model.gin`: what a training config includes, so that it trains this network."""
    told = [one for one in entries(config) if one.chosen and one.path.startswith("model.") and one.role == "identity"]
    lines = [f"# The network of {config.source}: settings of `model` alone, for a training config to include.", ""]
    return "\n".join([*lines, *(format_binding(one.path, one.value) for one in told)]) + "\n"


def copy_weights(stored: Mapping[str, Stored], out: Path, *, growth: Growth | None = None, progress: Progress) -> None:
    """Copies the files that hold the tensors, and reads them back; those of an earlier start are kept.

    With `growth`, the files of the tensors that grow are written anew, with all that is in them.

    Raises NotFinite; ConversionError: a disk that holds other bytes than were written, or has no room.
    """
    files = weight_files(stored)
    done = {name: told for name, told in _sums(out).items() if _is_kept(out / name, told, files)}
    missing = [file for file in files if file.name not in done]
    contents = {file.name: _content(file, stored, growth) for file in files}
    sizes = {name: size for name, (size, _) in contents.items()}
    check_room(out, sum(sizes[file.name] for file in missing))
    total, copied = sum(sizes.values()), sum(sizes[name] for name in done)

    def tell(more: int) -> None:
        nonlocal copied
        copied += more
        progress(copied, total, {})

    for file in missing:
        done[file.name] = _copy(file, contents[file.name][1], out / file.name, tell=tell)
        write_atomically(out / MANIFEST, json.dumps({"files": done}, indent=1, sort_keys=True) + "\n")


def check_room(folder: Path, needed: int) -> None:
    """Raises ConversionError: the disk has less free than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free: make room, or "
            "choose another --out"
        )


def damage(folder: Folder, *, hosts: Hosts = ALONE) -> str | None:
    """What is wrong with the weights of an imported folder, or None; of several processes each reads its part.

    Raises FolderError: the import is not finished.
    """
    read_complete(folder, stage="import")
    sums = _sums(folder)
    problem = None if sums else f"{epath.Path(folder) / MANIFEST} is missing or damaged"
    for name in sorted(sums)[hosts.index :: hosts.count]:
        problem = problem or _damage_of(epath.Path(folder) / name, sums[name])
    told = hosts.gather(f"weights of {os.fspath(folder)}", problem or "", minutes=_MINUTES)
    return next((one for one in told if one), None)


def weights_sha256(folder: Folder) -> str:
    """Of the names, sizes and checksums of the files that hold the weights."""
    told = {name: [one["bytes"], one["crc32c"]] for name, one in _sums(folder).items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sums(folder: Folder) -> Sums:
    try:
        files: Sums = json.loads((epath.Path(folder) / MANIFEST).read_text())["files"]
        return {
            name: {**told, "bytes": int(told["bytes"]), "crc32c": int(told["crc32c"])} for name, told in files.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _is_kept(copy: Path, told: Mapping[str, Any], files: Iterable[epath.Path]) -> bool:
    """Whether an earlier start has copied a file that has not changed since."""
    source = next((file for file in files if file.name == copy.name), None)
    if source is None or not copy.is_file() or copy.stat().st_size != told["bytes"]:
        return False
    return told.get("source") == _seen(source)


def _seen(file: epath.Path) -> list[int]:
    found = os.stat(file)
    return [found.st_size, found.st_mtime_ns]


def _copy(file: epath.Path, chunks: Iterable[Chunk], copy: Path, *, tell: Callable[[int], None]) -> dict[str, Any]:
    """Writes what a file is to hold, makes it durable, and gives it its name when the disk holds it; what it is.

    Raises NotFinite, which names all such tensors of it; ConversionError: the disk holds something else.
    """
    seen, partial = _seen(file), copy.with_name(f".{copy.name}.partial")
    crc, size, broken = 0, 0, []
    with naming(copy), open(partial, "wb", buffering=0) as written, closing(ReadBack(partial)) as back:
        for tensor, chunk in chunks:
            if tensor is not None and tensor.name not in broken and not _finite(chunk, tensor):
                broken.append(tensor.name)
            crc = google_crc32c.extend(crc, chunk)
            _write_all(written, memoryview(chunk))
            back.wrote(copy.name, size, memoryview(chunk))
            size += len(chunk)
            tell(len(chunk))
        if broken:
            lines = [f"{file}: {len(broken)} tensor(s) hold NaN or infinity, and nothing can be made of them:", *broken]
            raise NotFinite("\n  ".join(lines))
        os.fsync(written.fileno())
        if back.differing():
            raise ConversionError(f"{copy}: the disk holds other bytes than were written: do not trust it, use another")
    os.replace(partial, copy)
    fsync_folder(copy.parent)
    return {"source": seen, "bytes": size, "crc32c": crc}


def _content(file: epath.Path, stored: Mapping[str, Stored], growth: Growth | None) -> tuple[int, Iterator[Chunk]]:
    """How many bytes a file gets, and which."""
    tensors = [one for one in stored.values() if one.file == file]
    if growth is not None and growth.touches(tensors):
        return grown_size(tensors, growth), grown_file(tensors, growth)
    return int(file.stat().length), _chunks(file, tensors)


def _chunks(file: epath.Path, tensors: Sequence[Stored]) -> Iterator[Chunk]:
    """A file as it is, whose tensors follow one another."""
    read = 0
    with open(file, "rb") as source:
        for last, tensor in _parts(tensors):
            while read < last:
                chunk = source.read(min(_CHUNK, last - read))
                if not chunk:
                    raise ConversionError(f"{file}: became shorter while it was read; start again when it is whole")
                read += len(chunk)
                yield tensor, chunk


def _parts(tensors: Sequence[Stored]) -> Iterator[tuple[int, Stored | None]]:
    """(where it ends, tensor) of the parts of a file: the header, then the tensors."""
    yield tensors[0].start, None
    for tensor in tensors:
        yield tensor.start + tensor.nbytes, tensor


def _finite(chunk: bytes, tensor: Stored) -> bool:
    """Whether the bytes of a tensor are finite; a value that the file's end has cut is left out."""
    if tensor.dtype not in FLOATS:
        return True
    dtype = FLOATS[tensor.dtype]
    return all_finite(np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype))


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _damage_of(file: epath.Path, told: Mapping[str, Any]) -> str | None:
    try:
        if not file.exists():
            return f"{file} is missing"
        if (found := int(file.stat().length)) != told["bytes"]:
            return f"{file} has {found:,} bytes of {told['bytes']:,}"
        crc = 0
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                crc = google_crc32c.extend(crc, chunk)
    except OSError as error:
        return f"{file} can not be read: {error}"
    return None if crc == told["crc32c"] else f"{file} has other bytes than were imported (CRC-32C)"
