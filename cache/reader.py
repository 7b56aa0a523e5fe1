"""Reading a cache: rows in any order, copied straight out of the mapped chunk files."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from cache.address import checked_address, is_url, public_url
from cache.blocks import ChunkBlocks, chunks_held
from cache.chunk_store import ChunkFile, ChunkStore, Store
from cache.chunkmap import ChunkMaps
from cache.commands import command
from cache.commits import read_commits
from cache.identity import check_identity
from cache.layout import Layout, chunk_key, repair_hint
from cache.metadata import read_layout
from cache.origin import Origin, read_origin
from cache.remote import Remote
from cache.schema import STATUS_FIELD, CacheError, Field, FieldError, RowError, Status, status_name
from cache.source import open_source
from cache.tables import read_projection, read_samples
from cache.workplace import workplace

_log = logging.getLogger(__name__)
_WHAT_BLOCKS_ARE = (
    "whole chunks, decoded, of which the last ones used are kept: good for rows that are shuffled "
    "within chunks, slow for rows from anywhere"
)


def open_cache(
    path: str | os.PathLike[str], *, blocks: bool = False, store: Store | None = None
) -> TeacherCache:
    """Open a cache for reading; one that is still being written shows what is committed by now.

    Args:
        path: its folder; or with `blocks` a URL that fsspec opens, as `s3://bucket/caches/k400`:
            the address of a cache on a shelf, or of one that was copied there.
        blocks: read what cannot be mapped (compressed fields, a cache at a URL) in whole chunks,
            and log once which fields these are and why. Otherwise such a reading is refused.
        store: where chunk files from a URL are kept; below the user's cache folder by default.

    Raises:
        CacheError: there is no cache, or its metadata or commits are damaged; or it is at a URL
            and `blocks` is not set.
    """
    address = checked_address(os.fspath(path))
    if not is_url(path):
        cache = TeacherCache(Path(path), blocks=blocks)
    elif blocks:
        cache = _open_url(address, store or Store())
    else:
        url = public_url(address)
        raise CacheError(
            f"{url} is a URL, and what is not on this machine cannot be mapped. Copy the cache "
            f"here, or open_cache({url!r}, blocks=True) reads {_WHAT_BLOCKS_ARE}"
        )
    if blocks and is_url(path):
        where = store or Store()
        _log.warning(
            "%s: chunk files are fetched into %s when they are used, and kept there: at most %.1f "
            "GB of all caches",
            cache.place,
            where.folder,
            where.limit / 1e9,
        )
    if blocks and cache.unmapped:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in cache.unmapped.items())
        _log.warning("%s: read in %s: %s", cache.place, _WHAT_BLOCKS_ARE, reasons)
    return cache


def _open_url(url: str, store: Store) -> TeacherCache:
    with workplace() as folder:
        place = Remote(url).url
        try:
            source = open_source(url, folder)
            place = source.files.url
            chunks = ChunkStore(source.files, source.layout.fingerprint, store, source.way_out)
            cache = TeacherCache(
                source.layout.path, blocks=True, url=source.files.url, store=chunks
            )
            _ = cache.samples, cache.projection  # while their files are here
        except CacheError as error:
            message = str(error).replace(repair_hint(folder), repair_hint(place))
            raise type(error)(message.replace(str(folder), place)) from None
    return cache


class TeacherCache:
    """A cache as it stood when it was opened; made by `open_cache`.

    It travels into other processes, forked or spawned: they map the chunk files by themselves, as
    does each thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        blocks: bool,
        url: str | None = None,
        store: ChunkStore | None = None,
    ) -> None:
        """Read metadata and commits; see `open_cache`. Of a `url`, `path` is a copy of them."""
        self._layout = read_layout(path)
        self._commits = read_commits(self._layout)
        self._blocks = blocks
        self._url, self._store = url, store
        self._origin = read_origin(path)
        self._of_thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is mapped and loaded: the other process reads it again when needed."""
        state = self.__dict__.copy()
        for loaded in ("_of_thread", "status", *(() if self._url else ("samples", "projection"))):
            state.pop(loaded, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        self.__dict__.update(state, _of_thread=threading.local())

    def __repr__(self) -> str:
        """Name the folder and the extent."""
        partial = self.origin is not None and self.coverage < 1  # of all fields, maybe nothing
        there = "pulled in part" if partial else f"{self.coverage:.1%} present"
        return (
            f"TeacherCache({self.place!r}: {self.num_samples} samples, {self.num_views} views, "
            f"{there})"
        )

    @property
    def place(self) -> str:
        """The cache's folder or URL, for messages."""
        return self._url or str(self._layout.path)

    @property
    def path(self) -> Path:
        """The cache's folder.

        Raises:
            CacheError: it is at a URL.
        """
        if self._url is not None:
            raise CacheError(f"{self.place} is no folder on this machine")
        return self._layout.path

    @property
    def layout(self) -> Layout:
        """What the cache is made of, for those who stage chunks of it."""
        return self._layout

    @property
    def origin(self) -> Origin | None:
        """Where the cache was pulled from; None where it was made here, or at a URL."""
        return self._origin

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values of the rows."""
        return self._layout.identity

    @property
    def added(self) -> dict[str, Any]:
        """The teachers that were added later, each with what decides the values of its fields."""
        return self._layout.added

    @property
    def dataset(self) -> str:
        """The dataset's name, as far as the identity tells it."""
        dataset = self.identity.get("dataset")
        return str(dataset.get("name") if isinstance(dataset, dict) else dataset)

    @property
    def provenance(self) -> dict[str, Any]:
        """What else is known about their making."""
        return self._layout.provenance

    @property
    def packages(self) -> dict[str, list[str]]:
        """Package → the versions that made the rows."""
        return self._commits.packages

    @property
    def fingerprint(self) -> str:
        """The identity's sha256, recomputed when the cache was opened."""
        return self._layout.fingerprint

    @property
    def fields(self) -> dict[str, Field]:
        """The arrays by name, `status`, `input_digest` and `views` among them."""
        return self._layout.fields

    @property
    def num_samples(self) -> int:
        """Number of samples, whether cached already or not."""
        return self._layout.num_samples

    @property
    def parts(self) -> tuple[int, ...]:
        """Numbers of samples that came together: at first, and with each appending."""
        return self._layout.parts

    @property
    def num_views(self) -> int:
        """Number of views of each sample, whether cached already or not."""
        return self._layout.num_views

    @property
    def chunk_samples(self) -> int:
        """Number of samples in one chunk."""
        return self._layout.chunk_samples

    def check_identity(self, wanted: Mapping[str, Any]) -> None:
        """Refuse to use this cache in place of another one.

        Raises:
            IdentityMismatch: with the fields that differ.
        """
        check_identity(self.place, self.identity, wanted)

    @cached_property
    def samples(self) -> pa.Table:
        """The samples table, one row for each index of the sample axis.

        Raises:
            CacheError: the table is missing, unreadable, or of another length.
        """
        return read_samples(self._layout)

    @cached_property
    def projection(self) -> dict[str, NDArray[np.float32]]:
        """The fitted projections by name.

        Raises:
            CacheError: one of them is damaged or not as this format says.
        """
        return read_projection(self._layout)

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """What became of each row, as `Status`; (samples, views), 0 where there is no commit."""
        return self._read_statuses(STATUS_FIELD.name)

    def status_of(self, field: str) -> NDArray[np.uint8]:
        """What became of each row of a field, as `Status`; (samples, views).

        It is `status`, or that of the added teacher whose field it is; and 0 where the field
        itself is not there.

        Raises:
            FieldError: there is no such field.
        """
        (field,) = self._check_names([field])
        name = status_name(field, self.fields)
        status = self.status if name == STATUS_FIELD.name else self._read_statuses(name)
        samples_in_chunks = np.diff(self._layout.chunk_starts)
        there = np.repeat(self._commits.present[field], samples_in_chunks, axis=0)
        return np.where(there, status, np.uint8(Status.MISSING))

    def _read_statuses(self, name: str) -> NDArray[np.uint8]:
        """An array of statuses, whole; (samples, views)."""
        status = np.zeros((self.num_samples, self.num_views), np.uint8)
        for chunk, view in np.argwhere(self._commits.present[name]).tolist():
            rows = self._layout.sample_range(chunk)
            block = self._chunk_status(name, chunk * self.num_views + view)
            status[rows.start : rows.stop, view] = block[: len(rows)]
        return status

    def chunks_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The chunk of each sample, same shape."""
        return self._layout.places(samples)[0]

    @property
    def failures(self) -> dict[str, str]:
        """Sample id → why its rows are not valid, as the maker of the cache noted."""
        return dict(self._commits.failures)

    @property
    def coverage(self) -> float:
        """The part of the rows of which all fields are committed, whatever their status."""
        return self._commits.coverage(self._layout, self.fields)

    def coverage_by_field(self) -> dict[str, float]:
        """The part of each field's rows that is committed, whatever their status."""
        return {name: self._commits.coverage(self._layout, [name]) for name in self.fields}

    def bytes_by_field(self) -> dict[str, int]:
        """Bytes of each field's committed chunk files."""
        return {name: int(self._commits.sizes[name].sum()) for name in self.fields}

    @cached_property
    def unmapped(self) -> dict[str, str]:
        """The fields that cannot be mapped, and why not."""
        codecs = {name: field.codec for name, field in self.fields.items()}
        return {name: f"compressed: {codec}" for name, codec in codecs.items() if codec is not None}

    @property
    def num_chunks(self) -> int:
        """Number of chunks along the sample axis."""
        return self._layout.num_chunks

    def chunks_held(self, fields: Iterable[str] | None = None) -> int:
        """How many chunks of samples, in all views, are at hand at once; all where nothing limits.

        Rows that are read in an order that stays within so many chunks are decoded or fetched once
        only. Of a cache at a URL, as many are being fetched meanwhile.

        Args:
            fields: those that are read; all by default.
        """
        names = self._check_names(list(self.fields if fields is None else fields))
        unmapped = [self.fields[name] for name in names if name in self.unmapped]
        held = chunks_held(self._layout, unmapped)
        if self._store is not None:
            sizes = np.sum([self._commits.sizes[name] for name in names], axis=0).sum(axis=1)
            if sizes.sum() > self._store.limit:
                held = min(held, max(1, int(self._store.limit // 2 // max(1, sizes.max()))))
        return held

    def want(self, samples: ArrayLike, views: ArrayLike, fields: Iterable[str]) -> None:
        """Have rows of a cache at a URL fetched beforehand, in the order given.

        Of what stands in a folder nothing happens.

        Args:
            samples: (n,) integers.
            views: (n,) integers.
            fields: names.
        """
        if self._store is None:
            return
        chunks, _ = self._layout.places(np.asarray(samples, np.int64))
        numbers = chunks * self.num_views + np.asarray(views, np.int64)
        found, first = np.unique(numbers, return_index=True)
        places = [divmod(int(number), self.num_views) for number in found[np.argsort(first)]]
        self._store.want(
            ChunkFile(
                chunk_key(self.fields[name], chunk, view),
                int(self._commits.sizes[name][chunk, view]),
                int(self._commits.checksums[name][chunk, view]),
            )
            for chunk, view in places
            for name in fields
            if self._commits.present[name][chunk, view]
        )

    def read(
        self, samples: ArrayLike, views: ArrayLike, fields: Iterable[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Read rows, in the order asked for, as fresh arrays.

        Args:
            samples: (n,) integers, indices of the sample axis.
            views: (n,) integers, indices of the view axis.
            fields: names; all fields by default.

        Returns:
            field → (n, ...) of the field's dtype. Rows of status 2 and 3 are NaN.

        Raises:
            RowError: an index is out of range, or a row is not in the cache (yet).
            FieldError: there is no such field, or it cannot be mapped and the cache was not opened
                with `blocks`.
            DamagedError: a chunk file is not as committed.
        """
        names = self._check_fields(fields)
        sample_rows = self._check_indices("sample", samples, self.num_samples)
        view_rows = self._check_indices("view", views, self.num_views)
        if len(sample_rows) != len(view_rows):
            raise RowError(f"{len(sample_rows)} samples but {len(view_rows)} views; give pairs")
        chunks, rows = self._layout.places(sample_rows)
        for name in names:
            present = self._commits.present[name][chunks, view_rows]
            if not present.all():
                first = int(np.argmin(present))
                raise self._absent(name, int(sample_rows[first]), int(view_rows[first]))
        numbers, which = np.unique(chunks * self.num_views + view_rows, return_inverse=True)
        sources = self._sources
        return {name: sources[name].gather(numbers, which, rows) for name in names}

    @property
    def _sources(self) -> dict[str, ChunkMaps | ChunkBlocks]:
        """What gives the rows of each field to this thread."""
        if not hasattr(self._of_thread, "sources"):
            self._of_thread.sources = self._new_sources()
        found: dict[str, ChunkMaps | ChunkBlocks] = self._of_thread.sources
        return found

    def _new_sources(self) -> dict[str, ChunkMaps | ChunkBlocks]:
        sources: dict[str, ChunkMaps | ChunkBlocks] = {}
        for name, field in self.fields.items():
            if name not in self.unmapped:
                sources[name] = ChunkMaps(
                    self._layout,
                    field,
                    self._commits,
                    store=self._store,
                    held=2 * self.chunks_held() * self.num_views,
                )
            elif self._blocks:
                sources[name] = ChunkBlocks(
                    self._layout,
                    field,
                    self._commits,
                    store=self._store,
                    limit=self.chunks_held() * self.num_views,
                    status=partial(self._chunk_status, status_name(name, self.fields)),
                )
        return sources

    def _chunk_status(self, name: str, number: int) -> NDArray[Any]:
        """The statuses in the chunk file `number = chunk · views + view`, (chunk_samples,)."""
        return self._sources[name].chunk(number)

    def _check_fields(self, fields: Iterable[str] | None) -> list[str]:
        if isinstance(fields, str):
            raise FieldError(f"fields is {fields!r}; give a list of names, as [{fields!r}]")
        names = self._check_names(list(self.fields if fields is None else fields))
        for name in names:
            if name in self.unmapped and not self._blocks:
                raise FieldError(
                    f"{self.place}: field {name!r} cannot be mapped ({self.unmapped[name]}). "
                    f"open_cache({self.place!r}, blocks=True) reads {_WHAT_BLOCKS_ARE}"
                )
        return names

    def _check_names(self, names: list[str]) -> list[str]:
        for name in names:
            if name not in self.fields:
                raise FieldError(
                    f"{self.place} has no field {name!r}; it has {', '.join(self.fields)}"
                )
        return names

    def _check_indices(self, axis: str, indices: ArrayLike, size: int) -> NDArray[np.int64]:
        array = np.asarray(indices)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise RowError(
                f"{axis}s are {array.dtype} of shape {array.shape}; expected a list of integers"
            )
        outside = (array < 0) | (array >= size)
        if outside.any():
            raise RowError(
                f"{axis} {array[outside][0]} is not in {self.place}, which has {size} {axis}s "
                f"(0 … {size - 1})"
            )
        return array.astype(np.int64)

    def _absent(self, name: str, sample: int, view: int) -> RowError:
        sample_id = self.samples["sample_id"][sample].as_py()
        absent = (
            f"{self.place} does not hold sample {sample_id!r} (number {sample}), view {view}, "
            f"field {name!r}"
        )
        if self.origin:
            return RowError(f"{absent}: {self.how_to_complete(fields=[name], views=[view])}")
        views = max(view + 1, self.num_views)
        options = ("--dataset", self.dataset, "--out", self.place, "--views", views)
        extract = command("dualkd-cache", "extract", *options)
        return RowError(f"{absent}: nobody has made it yet. `{extract}` makes it")

    def how_to_complete(self, *, fields: Iterable[str] = (), views: Iterable[int] = ()) -> str:
        """For a cache that was pulled: how more of it is fetched.

        Args:
            fields: which; all if none.
            views: which; all if none.
        """
        origin = self.origin
        if origin is None:
            raise CacheError(f"{self.place} was not pulled")
        of_fields, of_views = ",".join(fields), ",".join(map(str, views))
        options = ["--fields", of_fields] if of_fields else []
        options += ["--views", of_views] if of_views else []
        pull = command("dualkd-cache", "pull", origin.url, self.place, *options)
        return f"it was pulled in part. `{pull}` fetches it, if it is there"
