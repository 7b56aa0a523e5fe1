"""Stage `extract`: both teachers over every view, once, into a cache.

Top to bottom: load the teachers, fit the projection on a calibration subset (once: afterwards it
is read from the cache), then chunk by chunk decode → teachers → residual → write → commit.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import (
    CacheError,
    CacheWriter,
    Field,
    PendingChunk,
    Status,
    check_place,
    create_cache,
    fingerprint,
    is_cache,
    open_cache,
    open_writer,
)
from pipeline.clips import ClipDataset, DrawnViews, Read, Request, iterate
from pipeline.config import Run
from pipeline.identity import build_identity, projection_digest, view_rule
from pipeline.models import Features, VideoModel, model_entry
from pipeline.projection import Projection, ProjectionSums
from pipeline.samples import Samples, read_samples
from pipeline.views import normalise
from pipeline.weights import load_weights
from stages.feed import clip_field
from stages.files import write_json
from stages.progress import console, meter, track


class ExtractError(RuntimeError):
    """Extraction stops; the message says why, and what was kept."""


@dataclass(frozen=True)
class Teachers:
    """The two teachers on their device, and how many clips they take at once."""

    vit: VideoModel
    cnn: VideoModel
    device: torch.device
    batch_size: int

    @torch.inference_mode()
    def features(self, reads: Sequence[Read]) -> Iterator[tuple[Features, Features]]:
        """Outputs of both for all views of all samples, a batch of clips at a time."""
        both = [
            np.concatenate([read.clips.clips[which] for read in reads if read.clips is not None])
            for which in (0, 1)
        ]
        for start in range(0, len(both[0]), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self._one(self.vit, both[0][part]), self._one(self.cnn, both[1][part])

    def _one(self, model: VideoModel, clips: NDArray[np.uint8]) -> Features:
        batch = normalise(torch.from_numpy(clips).to(self.device), model.clip)
        return model.features(batch.contiguous(memory_format=torch.channels_last_3d))


@dataclass(frozen=True)
class Options:
    """What does not decide the value of a row."""

    out: Path
    views: int
    limit: int | None
    workers: int
    batch_size: int
    replace: bool
    device: torch.device


def extract(run: Run, options: Options) -> None:
    """Make the cache, or go on with the one that stands.

    Raises:
        ExtractError: too many videos fail, or the calibration subset is too small.
        cache.CacheError: the cache at `out` is another one, is damaged, or is being written.
    """
    samples = _shuffled(read_samples(run.samples_path).of_splits(run.extract.splits), run)
    if options.limit is not None:
        samples = samples.take(range(min(options.limit, len(samples))))
    teachers = Teachers(
        vit=load_weights(run.teach.vit.model, samples.heads, Path(run.teach.vit.weights)),
        cnn=load_weights(run.teach.cnn.model, samples.heads, Path(run.teach.cnn.weights)),
        device=options.device,
        batch_size=options.batch_size,
    )
    for model in (teachers.vit, teachers.cnn):
        model.to(options.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with _open_or_create(run, options, samples, teachers) as writer:
        projection = _stored_projection(options.out)
        _check_samples(options.out, samples)
        if options.views > writer.num_views:
            writer.add_views(options.views - writer.num_views)
        pending = writer.pending()
        done = writer.num_chunks - len(pending)
        if done:
            console.print(f"{options.out}: {done} of {writer.num_chunks} chunks stand already")
        if pending:
            _extract_chunks(run, options, samples, teachers, projection, writer, pending)
    _summarise(run, options.out)


def _shuffled(samples: Samples, run: Run) -> Samples:
    """A seeded order, so that any contiguous part of the cache is an unbiased part."""
    order = np.random.default_rng(run.extract.views.seed).permutation(len(samples))
    return samples.take(order)


def _open_or_create(
    run: Run, options: Options, samples: Samples, teachers: Teachers
) -> CacheWriter:
    """Go on with the cache at `out` if it is this one; else make it, or refuse."""
    out = options.out
    if options.replace:
        _put_in_place(run, out, samples, teachers)
    if is_cache(out):
        sha256 = open_cache(out).identity.get("projection", {}).get("sha256", "")
        identity = build_identity(run, samples, teachers.vit, teachers.cnn, sha256)
        return open_writer(out, identity=identity)
    check_place(out)  # before the calibration, which takes its time
    arrays = _fit_projection(run, options, samples, teachers).arrays()
    return create_cache(
        out,
        identity=build_identity(
            run, samples, teachers.vit, teachers.cnn, projection_digest(arrays)
        ),
        provenance=_provenance(teachers),
        samples=samples.table,
        fields=_fields(run, samples, teachers),
        views=options.views,
        chunk_samples=run.extract.chunk_samples,
        projection=arrays,
    )


def _put_in_place(run: Run, out: Path, samples: Samples, teachers: Teachers) -> None:
    """Move another cache at `out` aside, and bring the wanted one back if it stands aside."""

    def is_wanted(path: Path) -> bool:
        stored = open_cache(path)
        sha256 = stored.identity.get("projection", {}).get("sha256", "")
        identity = build_identity(run, samples, teachers.vit, teachers.cnn, sha256)
        return fingerprint(identity) == stored.fingerprint and stored.samples.equals(samples.table)

    if not is_cache(out) or is_wanted(out):
        return
    mark = open_cache(out).fingerprint[:12]
    aside, number = out.with_name(f"{out.name}-{mark}"), 1
    while aside.exists():
        number += 1
        aside = out.with_name(f"{out.name}-{mark}-{number}")
    out.rename(aside)
    console.print(f"{out} held another cache, {mark}: moved to {aside}")
    for other in sorted(out.parent.glob(f"{out.name}-*")):
        if is_cache(other) and is_wanted(other):
            other.rename(out)
            console.print(f"{other} is the cache that is wanted: moved back to {out}")
            return


def _check_samples(out: Path, samples: Samples) -> None:
    """The cache's samples are the ones asked for: same ids, files, stretches and labels."""
    stored, wanted = open_cache(out).samples, samples.table
    if stored.num_rows != wanted.num_rows:
        raise ExtractError(
            f"{out} was made for {stored.num_rows} samples, the samples table now gives "
            f"{wanted.num_rows}. Use another --out, the same --limit as before, or --replace"
        )
    for column in wanted.column_names:
        for name, old, new in zip(
            stored["sample_id"].to_pylist(),
            stored[column].to_pylist() if column in stored.column_names else [],
            wanted[column].to_pylist(),
            strict=True,
        ):
            if old != new:
                raise ExtractError(
                    f"{out}: sample {name} was recorded with {column} {old!r}, the samples table "
                    f"now says {new!r}. Use another --out, or --replace"
                )


def _fit_projection(run: Run, options: Options, samples: Samples, teachers: Teachers) -> Projection:
    """Fit φ on view 0 of the first samples: the order is shuffled, so they are a fair subset."""
    config = run.extract.projection
    rows = range(min(config.samples, len(samples)))
    sums = ProjectionSums(grid=config.grid)
    requests: list[Request] = [(row, _drawn(run, (0,))) for row in rows]
    parts = _parts(requests, options.batch_size)
    dataset = _dataset(run, samples, teachers, ())
    reads = iterate(dataset, parts, options.workers)
    for batch in track(reads, total=len(parts), what="fitting the projection", unit="batches"):
        good = [read for read in batch if read.clips is not None]
        for vit, cnn in teachers.features(good) if good else ():
            finite = torch.isfinite(vit.map).flatten(1).all(1)
            finite &= torch.isfinite(cnn.map).flatten(1).all(1)
            sums.update(vit.map[finite], cnn.map[finite])
    try:
        projection = sums.fit(
            kind=config.kind, dim=config.dim, ridge=config.ridge, seed=config.seed
        )
    except ValueError as error:
        raise ExtractError(
            f"the projection cannot be fitted on {len(rows)} samples: {error}. "
            "See extract.projection in the config"
        ) from error
    console.print(
        f"projection {config.kind}: {sums.count} vectors; a linear map of the CNN's features "
        f"explains {projection.explained:.1%} of the ViT's"
    )
    return projection


def _stored_projection(out: Path) -> Projection:
    stored = open_cache(out)
    return Projection.from_arrays(stored.projection, stored.identity["projection"]["kind"])


def _drawn(run: Run, views: Sequence[int]) -> DrawnViews:
    return DrawnViews(view_rule(run.extract.views), tuple(views))


def _dataset(
    run: Run, samples: Samples, teachers: Teachers, students: Sequence[str]
) -> ClipDataset:
    specs = [teachers.vit.clip, teachers.cnn.clip, *(model_entry(name).clip for name in students)]
    # The digest is of what the teachers saw; a student's clip may be added later.
    return ClipDataset(Path(run.prepare.root), samples, specs, digested=2)


def _parts(requests: list[Request], size: int) -> list[list[Request]]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def _fields(run: Run, samples: Samples, teachers: Teachers) -> list[Field]:
    fields = []
    for role, model in (("vit", teachers.vit), ("cnn", teachers.cnn)):
        for head, classes in samples.heads.items():
            fields.append(Field(f"{role}/logits/{head}", ("class",), (classes,), "float16"))
        fields.append(Field(f"{role}/pooled", ("channel",), (model.pooled_channels,), "float16"))
    projection = run.extract.projection
    shape = (projection.dim, *projection.grid)
    fields.append(Field("residual", ("channel", "time", "height", "width"), shape, "float16"))
    for name in run.extract.clips:
        clip = model_entry(name).clip
        dims = ("frame", "height", "width", "colour")
        fields.append(
            Field(clip_field(name), dims, (clip.frames, clip.size, clip.size, 3), "uint8")
        )
    return fields


def _provenance(teachers: Teachers) -> dict[str, Any]:
    return {
        "command": " ".join(["dualkd-cache", *sys.argv[1:]]),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "device": str(teachers.device),
        "dtype": "float32",
    }


def _extract_chunks(
    run: Run,
    options: Options,
    samples: Samples,
    teachers: Teachers,
    projection: Projection,
    writer: CacheWriter,
    pending: Sequence[PendingChunk],
) -> None:
    """Decode ahead over all pending chunks; each is written as soon as its samples are through."""
    dataset = _dataset(run, samples, teachers, run.extract.clips)
    parts: list[list[Request]] = []
    parts_per_chunk = []
    for work in pending:
        size = max(1, options.batch_size // len(work.views))
        requests: list[Request] = [
            (row, _drawn(run, work.views)) for row in writer.sample_range(work.chunk)
        ]
        parts += _parts(requests, size)
        parts_per_chunk.append(-(-len(requests) // size))
    rows = sum(len(writer.sample_range(work.chunk)) * len(work.views) for work in pending)
    reads = iterate(dataset, parts, options.workers)
    failed = 0
    with meter("extracting", total=rows, unit="views") as counter:
        for work, number in zip(pending, parts_per_chunk, strict=True):
            chunk = ChunkArrays(writer, work, run.extract.clips)
            for _ in range(number):
                batch = next(reads)
                chunk.fill(batch, teachers, projection)
                counter.advance(len(batch) * len(work.views))
            writer.write_chunk(
                work.chunk, chunk.arrays, work.views, failures=chunk.failures(samples)
            )
            failed += len(chunk.errors)
            _check_failures(run, options.out, chunk, failed, samples)


def _check_failures(run: Run, out: Path, chunk: ChunkArrays, failed: int, samples: Samples) -> None:
    limit = run.extract.max_failed_share
    if failed > limit * len(samples):
        name, reason = next(iter(chunk.failures(samples).items()), ("", ""))
        raise ExtractError(
            f"{failed} of {len(samples)} samples failed, more than extract.max_failed_share "
            f"{limit:.0%} allows; the last one was {name}: {reason}. What was made is kept in {out}"
        )


class ChunkArrays:
    """The arrays of one chunk while its samples come in."""

    def __init__(self, writer: CacheWriter, work: PendingChunk, students: Sequence[str]) -> None:
        self._start = writer.sample_range(work.chunk).start
        self._students = students
        self._views = len(work.views)
        count = len(writer.sample_range(work.chunk))
        self.errors: dict[int, str] = {}
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.full((count, self._views, *field.shape), field.fill, field.numpy_dtype)
            for name, field in writer.layout.fields.items()
        }

    def fill(self, batch: Sequence[Read], teachers: Teachers, projection: Projection) -> None:
        """Enter what one batch of samples gives."""
        for read in batch:
            place = read.row - self._start
            if read.clips is None:
                self.errors[read.row] = read.error or "unknown"
                self.arrays["status"][place] = Status.UNREADABLE_VIDEO
                continue
            self.arrays["views"][place] = read.clips.views
            self.arrays["input_digest"][place] = read.clips.digests
            for student, clips in zip(self._students, read.clips.clips[2:], strict=True):
                self.arrays[clip_field(student)][place] = clips
        good = [read for read in batch if read.clips is not None]
        if not good:
            return
        rows = np.repeat([read.row - self._start for read in good], self._views)
        views = np.tile(np.arange(self._views), len(good))
        start = 0
        for vit, cnn in teachers.features(good):
            stop = start + len(vit.pooled)
            self._enter(rows[start:stop], views[start:stop], vit, cnn, projection)
            start = stop

    def _enter(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        vit: Features,
        cnn: Features,
        projection: Projection,
    ) -> None:
        values = {
            **{f"vit/logits/{head}": logits for head, logits in vit.logits.items()},
            **{f"cnn/logits/{head}": logits for head, logits in cnn.logits.items()},
            "vit/pooled": vit.pooled,
            "cnn/pooled": cnn.pooled,
            "residual": projection.residual(vit_map=vit.map, cnn_map=cnn.map),
        }
        stored = {name: _to_half(tensor) for name, tensor in values.items()}
        finite = np.ones(len(rows), dtype=bool)
        for array in stored.values():
            finite &= np.isfinite(array).reshape(len(rows), -1).all(axis=1)
        for name, array in stored.items():
            self.arrays[name][rows[finite], views[finite]] = array[finite]
        self.arrays["status"][rows, views] = np.where(
            finite, Status.VALID, Status.NON_FINITE_OUTPUT
        )
        for row in rows[~finite]:
            self.errors[self._start + int(row)] = "a teacher's output is not finite in float16"

    def failures(self, samples: Samples) -> dict[str, str]:
        """Sample id → reason."""
        return {samples.row(row).sample_id: error for row, error in self.errors.items()}


def _to_half(tensor: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = tensor.half().cpu().numpy()
    return array


def _summarise(run: Run, out: Path) -> None:
    stored = open_cache(out)
    status = stored.status
    failed = int((status > Status.VALID).any(axis=1).sum())
    console.print(
        f"{out}: {stored.num_samples} samples × {stored.num_views} views, "
        f"{sum(stored.bytes_by_field().values()) / 1e6:.1f} MB, {failed} samples failed, "
        f"fingerprint {stored.fingerprint[:12]}"
    )
    if stored.coverage < 1:
        raise CacheError(f"{out} is not complete: {stored.coverage:.1%} of its rows")
    write_json(
        run.outputs / "extract.json",
        {
            "rows": int(status.size),
            "valid": int((status == Status.VALID).sum()),
            "failed_samples": failed,
            "bytes": sum(stored.bytes_by_field().values()),
            "residual_explained_by_cnn": float(stored.projection["explained"]),
        },
    )
