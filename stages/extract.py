"""Stage `extract`: both teachers over every view, once, into a cache.

Top to bottom: load the teachers, fit the projection on a calibration subset (once: afterwards it
is read from the cache), then chunk by chunk decode → teachers → residual → write → commit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import (
    CacheError,
    CacheWriter,
    Field,
    PendingChunk,
    Status,
    TeacherCache,
    check_place,
    create_cache,
    fingerprint,
    is_cache,
    open_cache,
    open_writer,
)
from pipeline.clips import Request, in_batches, iterate
from pipeline.config import Run
from pipeline.identity import build_identity, projection_digest
from pipeline.projection import Projection, ProjectionSums
from pipeline.samples import Samples, read_samples
from pipeline.weights import weights_digest
from stages.chunk_arrays import ChunkArrays
from stages.fields import cache_fields, note_codecs
from stages.files import write_json
from stages.progress import console, meter, track
from stages.recorded import environment, sample_differences
from stages.rows import clip_dataset, drawn_views, stored_projection
from stages.teachers import Teachers, identity_for, load_teachers

_FIGURES = ("videos", "top1", "top5")


class ExtractError(RuntimeError):
    """Extraction stops; the message says why, and what was kept."""


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
    teachers = load_teachers(run, samples, options.device)
    with _open_or_create(run, options, samples, teachers) as writer:
        projection = stored_projection(open_cache(options.out))
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
    fields = cache_fields(run, samples, teachers)
    if is_cache(out):
        stored = open_cache(out)
        writer = open_writer(out, identity=identity_for(run, samples, teachers, stored))
        absent = _absent_fields(stored, fields)
        if absent:
            writer.close()
            raise ExtractError(
                f"{out} was made without {', '.join(absent)}, which the config asks for. Give "
                "another --out, or --replace, which moves this cache aside"
            )
        note_codecs(out, stored.fields, fields)
        return writer
    check_place(out)  # before the calibration, which takes its time
    arrays = _fit_projection(run, options, samples, teachers).arrays()
    return create_cache(
        out,
        identity=build_identity(
            run, samples, teachers.vit, teachers.cnn, projection_digest(arrays)
        ),
        provenance=_provenance(run, teachers),
        samples=samples.table,
        fields=fields,
        views=options.views,
        chunk_samples=run.extract.chunk_samples,
        projection=arrays,
    )


def _put_in_place(run: Run, out: Path, samples: Samples, teachers: Teachers) -> None:
    """Move another cache at `out` aside, and bring the wanted one back if it stands aside."""
    fields = cache_fields(run, samples, teachers)

    def is_wanted(path: Path) -> bool:
        stored = open_cache(path)
        identity = identity_for(run, samples, teachers, stored)
        same = fingerprint(identity) == stored.fingerprint and stored.samples.equals(samples.table)
        return same and not _absent_fields(stored, fields)

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
    for difference in sample_differences(stored, wanted):
        raise ExtractError(f"{out}: {difference}. Use another --out, or --replace")


def _fit_projection(run: Run, options: Options, samples: Samples, teachers: Teachers) -> Projection:
    """Fit φ on view 0 of the first samples: the order is shuffled, so they are a fair subset."""
    config = run.extract.projection
    rows = range(min(config.samples, len(samples)))
    sums = ProjectionSums(grid=config.grid)
    requests: list[Request] = [(row, drawn_views(run, (0,))) for row in rows]
    parts = in_batches(requests, options.batch_size)
    dataset = clip_dataset(run, samples, teachers, ())
    reads = iterate(dataset, parts, options.workers)
    for batch in track(reads, total=len(parts), what="fitting the projection", unit="batches"):
        good = [read for read in batch if read.clips is not None]
        for vit, cnn in teachers.features(good, options.batch_size) if good else ():
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
            "Raise extract.projection.samples in the config, or --limit"
        ) from error
    console.print(
        f"projection {config.kind}: {sums.count} vectors; a linear map of the CNN's features "
        f"explains {projection.explained:.1%} of the ViT's"
    )
    return projection


def _absent_fields(stored: TeacherCache, wanted: Sequence[Field]) -> list[str]:
    return [field.name for field in wanted if field.name not in stored.fields]


def _provenance(run: Run, teachers: Teachers) -> dict[str, Any]:
    return {
        "accuracy": _measured_accuracy(run, teachers),
        "command": " ".join(["dualkd-cache", *sys.argv[1:]]),
        **environment(),
        "device": str(teachers.device),
        "dtype": "float32",
    }


def _measured_accuracy(run: Run, teachers: Teachers) -> dict[str, Any]:
    """What `teach` measured of these very weights, by role; nothing where it has not run."""
    path = run.outputs / "teach.json"
    scores = json.loads(path.read_text()) if path.exists() else {}
    return {
        role: {"split": run.evaluate.split, **{name: scores[role][name] for name in _FIGURES}}
        for role, model in teachers.by_role().items()
        if scores.get(role, {}).get("weights_sha256") == weights_digest(model.net)
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
    dataset = clip_dataset(run, samples, teachers, run.extract.clips)
    parts: list[list[Request]] = []
    parts_per_chunk = []
    for work in pending:
        size = max(1, options.batch_size // len(work.views))
        requests: list[Request] = [
            (row, drawn_views(run, work.views)) for row in writer.sample_range(work.chunk)
        ]
        parts += in_batches(requests, size)
        parts_per_chunk.append(-(-len(requests) // size))
    rows = sum(len(writer.sample_range(work.chunk)) * len(work.views) for work in pending)
    reads = iterate(dataset, parts, options.workers)
    failed = open_cache(options.out).failures
    with meter("extracting", total=rows, unit="views") as counter:
        for work, number in zip(pending, parts_per_chunk, strict=True):
            chunk = ChunkArrays(writer, work, run.extract.clips)
            for _ in range(number):
                batch = next(reads)
                chunk.fill(batch, teachers, projection, options.batch_size)
                counter.advance(len(batch) * len(work.views))
            writer.write_chunk(
                work.chunk, chunk.arrays, work.views, failures=chunk.failures(samples)
            )
            failed |= chunk.failures(samples)
            _check_failures(run, options.out, failed, len(samples))


def _check_failures(run: Run, out: Path, failed: Mapping[str, str], samples: int) -> None:
    """Stop where too many samples failed, in this run or before."""
    limit = run.extract.max_failed_share
    if len(failed) > limit * samples:
        name, reason = list(failed.items())[-1]
        raise ExtractError(
            f"{len(failed)} of {samples} samples failed, more than extract.max_failed_share "
            f"{limit:.0%} allows; the last one was {name}: {reason}. What was made is kept in "
            f"{out}. Once the videos can be read, `dualkd-cache repair --failed {out}` drops the "
            "chunks that hold failed samples, and the next extract makes them again"
        )


def _summarise(run: Run, out: Path) -> None:
    stored = open_cache(out)
    _check_failures(run, out, stored.failures, stored.num_samples)
    status = stored.status
    failed = int((status > Status.VALID).any(axis=1).sum())
    console.print(
        f"{out}: {stored.num_samples} samples × {stored.num_views} views, "
        f"{sum(stored.bytes_by_field().values()) / 1e6:.1f} MB, {failed} samples failed, "
        f"fingerprint {stored.fingerprint[:12]}"
    )
    if stored.coverage < 1:
        raise CacheError(f"{out} is not complete: {stored.coverage:.1%} of its rows")
    if out != run.cache_path:
        return  # the figures of the run are those of its own cache
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
