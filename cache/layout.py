"""Where things lie in a cache folder, and how large they are."""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.address import is_url
from cache.codecs import BLOSC_HEADER_BYTES
from cache.commands import command
from cache.schema import CacheError, DamagedError, Field

METADATA = "zarr.json"
SAMPLES = "samples.parquet"
COMMITS = "commits"
MANIFEST = "manifest.json"
PROJECTION = "projection"
LOCK = ".lock"
ORIGIN = "origin.json"  # in a cache that was pulled
STAGING = ".staging"  # there while the cache is being written

_DVC_FILE = re.compile(r".*/files/md5/[0-9a-f]{2}/[0-9a-f]{30}", re.DOTALL)

CHECKSUM_BYTES = 4  # zarr's crc32c codec puts them behind the data of each chunk


@dataclass(frozen=True)
class Layout:
    """The metadata of a cache: all there is to know before commits and chunks are read.

    Attributes:
        path: the cache's folder.
        identity: what decides the values of the rows.
        provenance: what else is known about their making.
        fingerprint: of the identity, recomputed.
        added: teachers that were added later → what decides the values of their fields.
        fields: name → field, in the cache's order.
        parts: numbers of samples that came together: at first, and with each appending. Each part
            begins at a chunk's boundary.
        num_views: size of the view axis of `status`.
        chunk_samples: samples in one chunk.
    """

    path: Path
    identity: dict[str, Any]
    provenance: dict[str, Any]
    fingerprint: str
    added: dict[str, Any]
    fields: dict[str, Field]
    parts: tuple[int, ...]
    num_views: int
    chunk_samples: int

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return sum(self.parts)

    @property
    def num_chunks(self) -> int:
        """Number of chunks along the sample axis."""
        return sum(-(-part // self.chunk_samples) for part in self.parts)

    @property
    def axis_samples(self) -> int:
        """Size of the arrays' sample axis: that of the parts, all but the last in whole chunks."""
        *_, last = self.parts
        return self.num_chunks * self.chunk_samples - (-last % self.chunk_samples)

    @cached_property
    def chunk_starts(self) -> NDArray[np.int64]:
        """The first sample of each chunk, and behind them the number of samples; (chunks + 1,)."""
        ends = np.cumsum(self.parts)
        starts = [
            np.arange(end - part, end, self.chunk_samples)
            for end, part in zip(ends, self.parts, strict=True)
        ]
        return np.concatenate([*starts, ends[-1:]])

    def sample_range(self, chunk: int) -> range:
        """The samples of a chunk; the last chunk of a part may have fewer."""
        return range(*self.chunk_starts[chunk : chunk + 2].tolist())

    def places(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each sample its chunk, and its row in there."""
        chunks = np.searchsorted(self.chunk_starts, samples, side="right") - 1
        return chunks, samples - self.chunk_starts[chunks]

    def chunk_bytes(self, field: Field) -> int:
        """Bytes of one chunk's values: those of its file, but for a codec and the checksum."""
        return self.chunk_samples * field.row_bytes

    def file_bytes(self, field: Field) -> range:
        """The sizes that a chunk file can have: one only, unless it is compressed."""
        size = self.chunk_bytes(field) + CHECKSUM_BYTES
        if field.codec is None:
            return range(size, size + 1)
        return range(BLOSC_HEADER_BYTES + CHECKSUM_BYTES, size + BLOSC_HEADER_BYTES + 1)

    def key_of(self, place: tuple[str, int, int]) -> str:
        """The path of a chunk file by the name of its field, its chunk and its view."""
        name, chunk, view = place
        return chunk_key(self.fields[name], chunk, view)

    def decode(self, field: Field, data: bytes) -> NDArray[Any]:
        """The values of a chunk, (chunk_samples, ...), from its file's data without the checksum.

        Raises:
            CacheError: the data are not so many values.
        """
        shape = (self.chunk_samples, *field.shape)
        if field.codec is None:
            return np.frombuffer(data, field.numpy_dtype).reshape(shape)
        return field.codec.decode(data, field.numpy_dtype, math.prod(shape)).reshape(shape)


def stored_fill(field: Field) -> float:
    """What is read from a chunk file, decoded, where there is no value; NaN or a number."""
    fill = np.array([field.fill], field.numpy_dtype)
    return float((fill if field.codec is None else field.codec.stored(fill))[0])


def chunk_key(field: Field, chunk: int, view: int) -> str:
    """The path of a chunk file inside the cache, as `vit/pooled/c.3.0.0`."""
    return f"{field.name}/c.{chunk}.{view}{'.0' * len(field.shape)}"


def own_path(folder: Path, name: str) -> Path:
    """The path of one of a cache's own files or folders: no link on the way but DVC's to a file.

    A cache may come from somebody else: a link could lead anywhere on this machine, and to open a
    pipe would wait for ever.

    Raises:
        CacheError: a part of the path inside the cache is neither a file nor a folder itself, nor
            a link of DVC's.
    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink() and not is_dvc_link(path):
            raise CacheError(
                f"{path} is a link to {path.readlink()}, and a cache is read from its own files, "
                "or by DVC's links from those of a DVC cache (…/files/md5/ab/cdef…): put a copy of "
                "what it points to in its place, or have `dvc pull` fetch what DVC has lost"
            )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CacheError(
            f"{path} is neither a file nor a folder: remove it, it is no part of a cache"
        )
    return path


def is_dvc_link(path: Path) -> bool:
    """Whether a path is a link straight to a plain file of a DVC cache, by that file's name there.

    `dvc checkout` makes such links, with `cache.type symlink`. They are to be read only, so what is
    written in a cache replaces a file and never goes into it. A stranger's link may look so too;
    it can lead to nothing but a file whose name is a digest, and whose bytes are then checked.
    """
    if not path.is_symlink():
        return False
    target = path.parent / path.readlink()
    try:
        return bool(_DVC_FILE.fullmatch(str(target))) and stat.S_ISREG(target.lstat().st_mode)
    except OSError:  # it is not there, or may not be looked at
        return False


def samples_file(part: int) -> str:
    """The samples table of a part: `samples.parquet`, then `samples.1.parquet` and so on."""
    return SAMPLES if part == 0 else SAMPLES.replace(".", f".{part}.")


def written_folders(layout: Layout) -> set[Path]:
    """The folders in which a writer writes, and may have left temporary files."""
    folders = {layout.path, layout.path / COMMITS}
    for name in layout.fields:
        folders.update(layout.path / part for part in (Path(name), *Path(name).parents))
    return folders


def repair_hint(place: Path | str) -> str:
    """The way out where a chunk or a commit of a folder or URL is damaged."""
    if is_url(place):
        return (
            "Repair needs a folder: copy the cache to one, `dualkd-cache repair` and extract it "
            "there, and put it back"
        )
    repair = command("dualkd-cache", "repair", place)
    return f"`{repair}` drops the damaged chunks, so that the next extract makes them again"


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The crc32c (Castagnoli) of some bytes."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8)))  # takes no memoryview itself


def read_file(path: Path) -> tuple[bytes, int]:
    """Read an array that is one chunk file and check it against the checksum behind it.

    Returns:
        the data without the checksum, and the checksum.

    Raises:
        DamagedError: the file is missing, or its bytes are not those that were written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    data, stored = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    actual, written = crc32c(data), int.from_bytes(stored, "little")
    if actual != written:
        raise DamagedError(f"{path} is damaged: crc32c is {actual:08x}, written was {written:08x}")
    return data, actual


def wrong_bytes(path: Path, size: int, checksum: int) -> str | None:
    """What is wrong with a chunk file; None where it is as committed. It need not fit into memory.

    Args:
        path: the file.
        size: its committed bytes.
        checksum: the committed crc32c of its data.
    """
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if actual != size:
        return f"has {actual} bytes, committed {size}"
    content = np.memmap(path, np.uint8, mode="r")
    told = int.from_bytes(content[-CHECKSUM_BYTES:].tobytes(), "little")
    found = crc32c(content[:-CHECKSUM_BYTES])
    if not found == told == checksum:
        return f"is damaged: its crc32c is {found:08x}, committed {checksum:08x}"
    return None


@contextmanager
def on_full_disk(path: Path, lost: str) -> Iterator[None]:
    """Say what it means for a cache if the disk is full.

    Args:
        path: the cache.
        lost: what is not done then, and what stands.

    Raises:
        CacheError: there is no space left on the disk, or no more of it for this user.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CacheError(
            f"no space left for {path}: {lost}. Free some space and run the same command again"
        ) from error


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders written to the disk itself before going on."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
