"""Where the ViT knows more than the CNN: the energy of the cached residual, by class and place.

The energy of a cell of a row's grid is the mean square of the residual over its channels. Its mean
over the rows that the projection was fitted on is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import Status, TeacherCache
from pipeline.clips import StoredViews, read_clips
from pipeline.samples import Samples, samples_from_table
from pipeline.video_interface import VideoError
from pipeline.views import ClipSpec
from stages.pictures import picture_uri

FIELD = "residual"
_MOST_ROWS = 4096  # of a large cache; samples stand in it in a shuffled order
_AT_ONCE = 256  # rows in memory
_MOST_CLASSES = 30  # in the table
_MOST_STEPS = 8  # of time, over a clip
_PIXELS = 128  # of a frame's side
MOST_BYTES = 10_000  # of a frame
Energy = NDArray[np.float64]


@dataclass(frozen=True)
class Energies:
    """The energy of some rows of a cache.

    Attributes:
        samples: of the cache.
        rows: indices of its samples, (n,).
        views: of each, (n,).
        cells: (n, T', H', W').
        whole: rows that the cache has of these splits.
    """

    samples: Samples
    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    cells: Energy
    whole: int


def read_energies(cache: TeacherCache, splits: Sequence[str]) -> Energies | None:
    """Read the residual of a cache; None where it has none of it.

    Args:
        cache: opened with `blocks`.
        splits: whose rows.

    Raises:
        cache.CacheError: it is damaged.
    """
    if FIELD not in cache.fields:
        return None
    samples = samples_from_table(cache.samples, cache.place)
    valid = cache.status_of(FIELD) == Status.VALID
    valid[~np.isin(samples.table["split"].to_pylist(), splits)] = False
    views, rows = (places[:_MOST_ROWS] for places in np.nonzero(valid.T))  # a view after the other
    if not len(rows):
        return None
    cells = [
        _energy(cache.read(rows[begin:][:_AT_ONCE], views[begin:][:_AT_ONCE], [FIELD])[FIELD])
        for begin in range(0, len(rows), _AT_ONCE)
    ]
    return Energies(samples, rows, views, np.concatenate(cells), int(valid.sum()))


def _energy(residual: NDArray[np.float16]) -> Energy:
    """(n, D, T', H', W') → (n, T', H', W')."""
    energy: Energy = np.square(residual.astype(np.float64)).mean(axis=1)
    return energy


@dataclass(frozen=True)
class ClassEnergy:
    """The energy of a class.

    Attributes:
        name: its label.
        mean: over its videos, each the mean over views and cells.
        interval: 95 % of the mean, by the normal approximation; None of a single video.
        videos: how many.
    """

    name: str
    mean: float
    interval: tuple[float, float] | None
    videos: int


def by_class(energies: Energies) -> list[ClassEnergy]:
    """The classes of the first head that have rows, the greatest energy first."""
    head, names = next(iter(energies.samples.classes.items()))
    labels = energies.samples.labels(-1)[head]
    of_row = energies.cells.mean(axis=(1, 2, 3))
    videos, which = np.unique(energies.rows, return_inverse=True)
    of_video = np.bincount(which, of_row) / np.bincount(which)
    found = []
    for label in np.unique(labels[videos]):
        if label >= 0:
            values = of_video[labels[videos] == label]
            found.append(
                ClassEnergy(names[label], float(values.mean()), _interval(values), len(values))
            )
    return sorted(found, key=lambda one: -one.mean)


def _interval(values: Energy) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(0.0, float(values.mean()) - half), float(values.mean()) + half


def extremes(rows: Sequence[ClassEnergy]) -> tuple[list[ClassEnergy], int]:
    """Those that a page shows, and how many between them it leaves out."""
    if len(rows) <= _MOST_CLASSES:
        return list(rows), 0
    half = _MOST_CLASSES // 2
    return [*rows[:half], *rows[-half:]], len(rows) - 2 * half


@dataclass(frozen=True)
class HeatClip:
    """The residual of one row, laid over the frames that the teachers saw.

    Attributes:
        class_name: its label.
        sample_id: which video.
        view: which of its views.
        energy: of its cells, (T', H', W').
        frames: a data URI for each step of time; empty where the video cannot be read.
        error: why there are no frames.
    """

    class_name: str
    sample_id: str
    view: int
    energy: Energy
    frames: list[str]
    error: str | None = None


def heat_clips(
    energies: Energies, cache: TeacherCache, root: Path, spec: ClipSpec
) -> list[HeatClip]:
    """The first row of three classes: of the greatest, the middle and the least energy.

    Args:
        energies: of the cache.
        cache: for the views.
        root: of the videos.
        spec: the ViT's clip.
    """
    names = [one.name for one in by_class(energies)]
    places = dict.fromkeys([0, len(names) // 2, len(names) - 1]) if names else {}
    return [_heat_clip(names[place], energies, cache, root, spec) for place in places]


def _heat_clip(
    name: str, energies: Energies, cache: TeacherCache, root: Path, spec: ClipSpec
) -> HeatClip:
    head, classes = next(iter(energies.samples.classes.items()))
    labels = energies.samples.labels(-1)[head][energies.rows]
    first = int(np.flatnonzero(labels == classes.index(name))[0])
    row, view = int(energies.rows[first]), int(energies.views[first])
    steps = np.linspace(0, 1, min(len(energies.cells[first]), _MOST_STEPS), endpoint=False)
    cells = energies.cells[first][(steps * len(energies.cells[first])).astype(int)]
    sample = energies.samples.row(row)
    own = ClipSpec(frames=spec.frames, stride=spec.stride, size=_PIXELS)
    try:
        record = cache.read([row], [view], ["views"])["views"]
        clip = read_clips(root, sample, StoredViews(record), [own]).clips[0][0]
    except VideoError as error:
        return HeatClip(name, sample.sample_id, view, cells, [], str(error))
    middles = (steps + 0.5 / len(energies.cells[first])) * spec.frames  # of what each cell pools
    frames = [picture_uri(clip[int(middle)], MOST_BYTES) for middle in middles]
    return HeatClip(name, sample.sample_id, view, cells, frames)
