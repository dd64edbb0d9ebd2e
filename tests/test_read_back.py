"""What a disk holds otherwise than it was written is named, whenever it was read."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import pytest

from wizard_jax.convert import read_back
from wizard_jax.convert.read_back import ReadBack


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "SEGMENT", 20_000)


def written(file: Path, back: ReadBack, *, spoilt: int | None) -> None:
    """Parts of 5,000 bytes, the later half of the file first; the disk keeps another byte of one."""
    with file.open("wb", buffering=0) as out:
        for number in itertools.chain(range(10, 20), range(10)):
            data = bytes([number]) * 5_000
            out.seek(number * 5_000)
            out.write(data[:-1] + b"?" if number == spoilt else data)
            back.wrote(f"part {number}", number * 5_000, memoryview(data))


@pytest.mark.parametrize("spoilt", [None, *range(0, 20, 3), 19])
def test_the_part_that_differs_is_named(spoilt: int | None, tmp_path: Path) -> None:
    with closing(ReadBack(tmp_path / "file")) as back:
        written(tmp_path / "file", back, spoilt=spoilt)
        assert back.differing() == ([] if spoilt is None else [f"part {spoilt}"])


def test_a_file_that_ends_early_differs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4_999))
    with closing(ReadBack(tmp_path / "file")) as back:
        back.wrote("all", 0, memoryview(bytes(5_000)))
        assert back.differing() == ["all"]
