"""A part of a cache: some fields, views, samples; always with what their rows go by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.commits import Commits
from cache.layout import Layout
from cache.schema import OWN_FIELDS, CacheError, FieldError, status_name
from cache.tables import read_samples


@dataclass(frozen=True)
class Selection:
    """What is wanted of a cache; None is all.

    Attributes:
        fields: names, or groups of them as `vit/logits`.
        views: indices of the view axis.
        fraction: of the samples, in (0, 1]: in whole chunks, the first of each part. Samples stand
            in a shuffled order, so these are an unbiased part.
        split: in whole chunks, those that hold a sample of it.
    """

    fields: tuple[str, ...] | None = None
    views: tuple[int, ...] | None = None
    fraction: float | None = None
    split: str | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def to_json(self) -> dict[str, Any]:
        """What was asked for, as JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def keys(self, layout: Layout, commits: Commits) -> dict[str, NDArray[np.bool_]]:
        """The chunk files that are wanted and exist: field → (chunks, views) bool.

        Raises:
            FieldError: there is no such field.
            CacheError: there is no such view or split, or the fraction is none.
        """
        names = self._fields(layout)
        rows = self._chunks(layout)[:, None] & self._views(layout)[None, :]
        return {name: commits.present[name] & rows for name in names}

    def samples(self, layout: Layout) -> int:
        """How many samples are in the chunks that are wanted; more than were asked for.

        Raises:
            CacheError: there is no such split, or the fraction is none.
        """
        return int(np.diff(layout.chunk_starts)[self._chunks(layout)].sum())

    def _fields(self, layout: Layout) -> list[str]:
        if self.fields is None:
            return list(layout.fields)
        wanted = {field.name for field in OWN_FIELDS}
        for asked in self.fields:
            found = [
                name for name in layout.fields if name == asked or name.startswith(f"{asked}/")
            ]
            if not found:
                raise FieldError(
                    f"there is no field {asked!r}; there are {', '.join(layout.fields)}"
                )
            wanted.update(found)
        # Of a teacher that was added, its own statuses and digests.
        for status in {status_name(name, layout.fields) for name in wanted}:
            group = status.rpartition("/")[0]
            wanted.update({status, f"{group}/input_digest" if group else "input_digest"})
        return [name for name in layout.fields if name in wanted]

    def _views(self, layout: Layout) -> NDArray[np.bool_]:
        chosen = np.ones(layout.num_views, np.bool_)
        if self.views is not None:
            absent = [view for view in self.views if not 0 <= view < layout.num_views]
            if absent:
                raise CacheError(
                    f"there is no view {absent[0]}; there are 0 … {layout.num_views - 1}"
                )
            chosen[:] = np.isin(np.arange(layout.num_views), self.views)
        return chosen

    def _chunks(self, layout: Layout) -> NDArray[np.bool_]:
        chosen = np.ones(layout.num_chunks, np.bool_)
        if self.fraction is not None:
            if not 0 < self.fraction <= 1:
                raise CacheError(f"fraction is {self.fraction:g}, expected more than 0, at most 1")
            chosen = _first_of_parts(layout, self.fraction)
        if self.split is not None:
            splits = read_samples(layout)["split"].to_pylist()
            if self.split not in splits:
                there = ", ".join(sorted(set(splits)))
                raise CacheError(f"there is no split {self.split!r:.80}; there are {there}")
            holds = np.array([split == self.split for split in splits])
            chosen = chosen & np.logical_or.reduceat(holds, layout.chunk_starts[:-1])
        return chosen


def _first_of_parts(layout: Layout, fraction: float) -> NDArray[np.bool_]:
    """So much of each part of samples, rounded up to whole chunks."""
    chosen: list[bool] = []
    for part in layout.parts:
        chunks = -(-part // layout.chunk_samples)
        some = min(chunks, math.ceil(fraction * part / layout.chunk_samples - 1e-9))
        chosen += [number < some for number in range(chunks)]
    return np.array(chosen)
