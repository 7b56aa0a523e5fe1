"""`verify --recompute`: the teachers run again over some rows, beside what the cache holds of them.

Top to bottom: is it the same identity, are they the same samples; then decode → teachers →
residual as in `extract`, and compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import (
    Codec,
    Status,
    TeacherCache,
    open_cache,
)
from pipeline.clips import Read, Request, in_batches, iterate
from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.projection import Projection
from pipeline.samples import Samples, read_samples, samples_from_table
from stages.copying import CopyToHost
from stages.progress import track
from stages.recorded import compare_samples, environment, in_lines
from stages.rows import (
    Networks,
    drawn_views,
    stored_projection,
    stored_values,
    stored_values_of_added,
)
from stages.stored_clips import clip_field, format_of, stored_students, why_not
from stages.teachers import (
    added_identities,
    check_added,
    identity_for,
    load_added,
    load_teachers,
)

# A value may differ by this × (its own size + the root mean square of its row in the field). For
# float16 it is four roundings (one is 2⁻¹¹) of the value, and as much of the row: small values are
# sums of large ones, whose order differs between machines and batches. Teachers that compute in
# bfloat16 lose up to 0.055 of it on the way (MViTv2-S, X3D-M), and the residual is a difference. A
# lossy codec's own largest error comes on top: what is a hair apart may round to two steps.
TOLERANCE = {"fp32": 2.0**-9, "bf16": 2.0**-3}
_OF_FLOAT64 = 1e-9
_EXACT = 0.5  # allowed of integers
_NOT_FINITE = 1e9  # stands for a recomputed value that is not finite


class RecomputeError(RuntimeError):
    """Rows cannot be made again here; the message says why."""


@dataclass(frozen=True)
class Options:
    """What to make again, and how."""

    rows: int
    seed: int
    decoders: int
    batch_size: int
    device: torch.device


@dataclass
class FieldDifference:
    """How far one field is from its recomputation, over all rows.

    Attributes:
        largest: the largest absolute difference.
        of_tolerance: the largest difference as a share of what is allowed there.
        codec: the lossy codec that is allowed for, if any.
    """

    largest: float = 0.0
    of_tolerance: float = 0.0
    codec: str | None = None


@dataclass(frozen=True)
class RowFinding:
    """One row that does not come out as it stands in the cache.

    Attributes:
        sample_id: the sample.
        view: index along the view axis.
        what: what is different.
        way_out: what to do.
    """

    sample_id: str
    view: int
    what: str
    way_out: str


class Recomputed:
    """What came of it.

    Attributes:
        rows: number of rows that were made again.
        fields: differences by field, over the rows whose video could be read.
        findings: the rows that do not come out as they stand in the cache.
        left_out: the added teachers that the config does not name.
        other_frames: rows whose videos show other frames here than where the cache was made.
        lacking: fields that were not compared in some rows, as a partial cache lacks them there.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.fields: dict[str, FieldDifference] = {}
        self.findings: list[RowFinding] = []
        self.left_out: list[str] = []
        self.other_frames = 0
        self.lacking: set[str] = set()


def recompute(run: Run, path: Path, options: Options) -> Recomputed:
    """Make random valid rows of a cache again and compare them with what it holds.

    With 0 rows only identity and samples are compared.

    Args:
        run: the config; videos, samples table and teachers are those of this machine.
        path: the cache.
        options: how many rows, drawn with which seed.

    Raises:
        cache.IdentityMismatch: the cache was made from other inputs than the config names.
        RecomputeError: a recorded sample has another file, stretch, split or label now, or the
            cache holds other clips than a student takes.
    """
    stored, now = open_cache(path, blocks=True), read_samples(run.samples_path)
    teachers = load_teachers(run, now, options.device)
    stored.check_identity(identity_for(run, now, teachers.identities(run), stored))
    added = _added(run, stored, now, options)
    networks = Networks(teachers, _students(stored), added, run.extract.precision)
    _check_samples(run, stored, now)
    places = _draw_rows(stored, options)
    result = Recomputed(len(places))
    result.left_out = sorted(stored.added.keys() - networks.added.keys())
    projection = stored_projection(stored)
    dataset = networks.dataset(run, samples_from_table(stored.samples, str(path)), stored.fields)
    requests: list[Request] = [(row, drawn_views(run, (view,))) for row, view in places.tolist()]
    parts = in_batches(requests, options.batch_size)
    reads = iterate(dataset, parts, options.decoders)
    progress = track(reads, total=len(parts), what="recomputing", unit="batches")
    for number, batch in enumerate(progress):
        of_batch = places[number * options.batch_size :][: len(batch)]
        good = [place for place, read in enumerate(batch) if read.clips is not None]
        for place, read in enumerate(batch):
            if read.clips is None:
                what = f"was readable when the cache was made, and is not now: {read.error}"
                _note(
                    result,
                    stored,
                    of_batch[place],
                    what,
                    "put the video back, or say with --root where the videos are",
                )
        if good:
            made = _make([batch[place] for place in good], networks, projection)
            _compare(result, stored, of_batch[good], made, TOLERANCE[run.extract.precision])
    return result


def _added(run: Run, stored: TeacherCache, now: Samples, options: Options) -> dict[str, VideoModel]:
    """The added teachers that both the cache and the config have, with the recorded weights."""
    both = stored.added.keys() & run.extract.added.keys()
    added = load_added(run, now, options.device, sorted(both))
    check_added(stored, added_identities(run, added))
    return added


def _students(stored: TeacherCache) -> list[str]:
    """The students whose clips are made again."""
    students = stored_students(stored)
    for name in students:
        field = stored.fields[clip_field(name)]
        if not format_of(field, name):
            raise RecomputeError(f"{stored.path}: {why_not(field, name)}")
    return students


def _check_samples(run: Run, stored: TeacherCache, now: Samples) -> None:
    lost, changed = compare_samples(stored.samples, now.table)
    differences = [f"sample {name} is not in the samples table" for name in lost] + changed
    if differences:
        raise RecomputeError(
            f"{stored.path} was not made from the samples of {run.samples_path}:\n"
            f"{in_lines(differences)}\nPrepare the samples table that the cache was made from."
        )


def _draw_rows(stored: TeacherCache, options: Options) -> NDArray[np.int64]:
    """Random valid rows, (n, 2): sample, view; in the order of the cache."""
    valid = np.argwhere(stored.status == Status.VALID)
    count = min(options.rows, len(valid))
    chosen = np.random.default_rng(options.seed).choice(len(valid), count, replace=False)
    return valid[np.sort(chosen)]


def _make(
    reads: Sequence[Read], networks: Networks, projection: Projection
) -> dict[str, NDArray[Any]]:
    """The fields of one batch of rows, as `extract` makes them."""
    clips = [read.clips for read in reads if read.clips is not None]
    outputs = {
        name: next(networks.outputs_of(name, networks.clips_of(name, reads)))
        for name in networks.by_name
    }
    made: dict[str, NDArray[Any]] = {
        "views": np.concatenate([of_row.views for of_row in clips]),
        "input_digest": np.concatenate([of_row.digests[:, 0] for of_row in clips]),
    }
    for name in networks.students:
        which = networks.student_clip(name)
        made[clip_field(name)] = np.concatenate([of_row.clips[which] for of_row in clips])
    made |= CopyToHost(stored_values(outputs["vit"], outputs["cnn"], projection)).arrays()
    for name in networks.added:
        made |= CopyToHost(stored_values_of_added(name, outputs[name])).arrays()
    return made


def _compare(
    result: Recomputed,
    stored: TeacherCache,
    places: NDArray[np.int64],
    made: dict[str, NDArray[Any]],
    tolerance: float,
) -> None:
    """Enter the differences of one batch; those of the frames explain all others of a row."""
    rows, views = places.T
    for name in list(made):
        if (stored.status_of(name)[rows, views] == Status.MISSING).any():
            result.lacking.add(name)
            del made[name]
    cached = stored.read(rows, views, list(made))
    now, then = made.pop("input_digest"), cached.pop("input_digest")
    result.other_frames += int((now != then).sum())
    decoders = environment()["decoder"], stored.provenance.get("decoder", "an unknown decoder")
    for place in np.flatnonzero(now != then):
        what = (
            f"has other frames: input_digest {now[place]:016x} by {decoders[0]}, recorded "
            f"{then[place]:016x} by {decoders[1]}"
        )
        way_out = "get the video that the cache was made from, or decode with the recorded versions"
        _note(result, stored, places[place], what, way_out)
    for name, values in made.items():
        codec = stored.fields[name].codec
        lossy = codec if codec and codec.lossy else None
        largest, of_tolerance = _differences(values, cached[name], lossy, tolerance)
        field = result.fields.setdefault(name, FieldDifference(codec=str(lossy) if lossy else None))
        field.largest = max(field.largest, float(largest.max()))
        field.of_tolerance = max(field.of_tolerance, float(of_tolerance.max()))
        for place in np.flatnonzero((of_tolerance > 1) & (now == then)):
            what = (
                f"differs in {name} by up to {largest[place]:.3g}, which is "
                f"{of_tolerance[place]:.3g} times the tolerance"
            )
            way_out = "the frames are the recorded ones: compare device, packages and dtype"
            _note(result, stored, places[place], what, way_out)


def _differences(
    now: NDArray[Any], then: NDArray[Any], lossy: Codec | None, tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per row the largest absolute difference, and the largest as a share of what is allowed."""
    new, old = (values.reshape(len(values), -1).astype(np.float64) for values in (now, then))
    new = np.nan_to_num(new, nan=_NOT_FINITE, posinf=_NOT_FINITE, neginf=-_NOT_FINITE)
    difference = np.abs(new - old)
    if then.dtype.kind == "f":
        size = np.abs(old) + np.sqrt(np.mean(old**2, axis=1, keepdims=True))
        share = _OF_FLOAT64 if then.dtype == np.float64 else tolerance
        allowed = np.maximum(share * size, np.finfo(np.float16).tiny)
    else:
        allowed = np.full_like(old, _EXACT)
    if lossy:
        allowed += lossy.error(then).reshape(old.shape)
    return difference.max(axis=1), (difference / allowed).max(axis=1)


def _note(
    result: Recomputed, stored: TeacherCache, place: NDArray[np.int64], what: str, way_out: str
) -> None:
    sample, view = place.tolist()
    name = stored.samples["sample_id"][sample].as_py()
    result.findings.append(RowFinding(name, view, what, way_out))
