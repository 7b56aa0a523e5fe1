"""Stage `extract`: both teachers over every view, once, into a cache.

Top to bottom: load the teachers, fit the projection on a calibration subset (once: afterwards it
is read from the cache), then chunk by chunk decode → teachers → residual → write → commit.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache import (
    OWN_FIELDS,
    CacheError,
    CacheWriter,
    Layout,
    PendingChunk,
    StagedChunk,
    Status,
    TeacherCache,
    check_place,
    command,
    create_cache,
    is_cache,
    open_cache,
)
from pipeline.clips import Request, in_batches, iterate
from pipeline.config import Run
from pipeline.identity import build_identity, projection_digest
from pipeline.projection import Projection, ProjectionSums
from pipeline.samples import read_samples
from stages.chunk_arrays import ChunkArrays, ExtractError
from stages.files import write_json
from stages.gate import check_teachers
from stages.making import ChunkMaker
from stages.memory import free_memory, memory_of_chunks
from stages.opening import Wanted, open_wanted, put_in_place
from stages.overlap import ahead
from stages.progress import Meter, console, meter, track
from stages.recorded import environment
from stages.rows import Networks, drawn_views, load_networks, ordered_samples
from stages.teachers import Teachers
from stages.wording import percent, plural, size

__all__ = ["ExtractError", "Options", "extract"]

_MEMORY_SHARE = 0.5  # of what is free: networks, and the decoders' batches, need the rest


@dataclass(frozen=True)
class Options:
    """What does not decide the value of a row.

    Attributes:
        out: where the cache stands, or is to stand.
        views: of each sample.
        limit: the cache grows to at most so many samples.
        decoders: processes that decode; of each worker, where there are any.
        batch_size: clips in one forward pass.
        replace: whether another cache at `out` is moved aside.
        device: of this process.
        workers: of a cluster on this machine; None computes in this process.
        scheduler: the address of a cluster that is there already.
        worker_device: of the scheduler's workers; None takes a GPU where there is one.
    """

    out: Path
    views: int
    limit: int | None
    decoders: int
    batch_size: int
    replace: bool
    device: torch.device
    workers: int | None = None
    scheduler: str | None = None
    worker_device: str | None = None


def extract(run: Run, options: Options) -> None:
    """Make the cache, or go on with the one that stands, which grows to what is asked for.

    Raises:
        ExtractError: too many videos fail, the calibration subset is too small, or a sample that
            is cached is another one now.
        cache.CacheError: the cache at `out` is another one, is damaged, or is being written.
    """
    _check_workers(options)
    wanted = _wanted(run, options)
    if options.replace:
        put_in_place(options.out, wanted)
    if is_cache(options.out):
        wanted = wanted.with_clips_of(open_cache(options.out))
    accuracy = _pass_gate(options, wanted)
    if not is_cache(options.out):
        _create(options, wanted, accuracy)
    with open_wanted(options.out, wanted) as writer:
        cache = open_cache(options.out)
        _check_failures(run, options.out, cache.failures, writer)
        pending = _pending(writer, options, wanted)
        done = writer.num_chunks - len({work.chunk for work in pending})
        if done:
            console.print(f"{options.out}: {done} of {writer.num_chunks} chunks stand already")
        if pending:
            _extract_chunks(options, wanted, writer, cache, pending)
        if _pending(writer, options, wanted):
            raise CacheError(f"{options.out} is not complete")
    _summarise(run, options.out)


def _check_workers(options: Options) -> None:
    """Find out before the long part whether there are those who are to make it."""
    if options.scheduler is not None:
        from distributed import Client  # noqa: PLC0415 (takes seconds to import)

        from stages.cluster import check_scheduler  # noqa: PLC0415

        check_scheduler(lambda: Client(options.scheduler), options.worker_device)
    elif options.workers is not None:
        from stages.local_cluster import check_gpus  # noqa: PLC0415

        check_gpus(options.workers, options.device)


def _wanted(run: Run, options: Options) -> Wanted:
    table = read_samples(run.samples_path)
    samples = ordered_samples(run, table)
    networks = load_networks(run, table, options.device)
    return Wanted(run, table, samples, networks, options.views, options.limit)


def _pass_gate(options: Options, wanted: Wanted) -> dict[str, Any]:
    """Score the teachers that the cache does not know as scored; they are of its identity."""
    stored = open_cache(options.out) if is_cache(options.out) else None
    rows = max(wanted.teacher_views(wanted.missing(stored)).values())
    unscored = {name: wanted.networks.by_name[name] for name in wanted.unscored(stored)}
    if not unscored or not rows:
        return {}
    return check_teachers(
        wanted.run,
        wanted.table,
        unscored,
        rows=rows,
        decoders=options.decoders,
        batch_size=options.batch_size,
    )


def _pending(writer: CacheWriter, options: Options, wanted: Wanted) -> list[PendingChunk]:
    """What is asked for and not there; fields that the config does not name are left alone."""
    names = [field.name for field in (*OWN_FIELDS, *wanted.fields())]
    limit = options.limit or writer.layout.num_samples
    return [work for work in writer.pending(names) if writer.sample_range(work.chunk).start < limit]


def _create(options: Options, wanted: Wanted, accuracy: Mapping[str, Any]) -> None:
    """Make an empty cache of the first samples; the fields of added teachers are added to it."""
    check_place(options.out)  # before the calibration, which takes its time
    run, samples = wanted.run, wanted.first_samples
    fields = wanted.fields()
    arrays = _fit_projection(options, wanted).arrays()
    create_cache(
        options.out,
        identity=build_identity(
            run, samples, wanted.teachers, projection_digest(arrays), available=len(samples)
        ),
        provenance=_provenance(run, options, accuracy),
        samples=samples.table,
        fields=[
            field for field in fields if field.name.partition("/")[0] not in wanted.networks.added
        ],
        views=wanted.views,
        chunk_samples=run.extract.chunk_samples,
        projection=arrays,
    ).close()


def _fit_projection(options: Options, wanted: Wanted) -> Projection:
    """Fit φ on view 0 of the first samples: the order is shuffled, so they are a fair subset."""
    run, samples = wanted.run, wanted.first_samples
    networks = Networks(wanted.networks.teachers, precision=run.extract.precision)
    config = run.extract.projection
    rows = range(min(config.samples, len(samples)))
    if len(rows) < config.samples:
        console.print(
            f"the projection is fitted on {len(rows)} samples, fewer than the {config.samples} of "
            "extract.projection.samples: to grow, this cache needs a config that asks for no more"
        )
    sums = ProjectionSums(grid=config.grid)
    requests: list[Request] = [(row, drawn_views(run, (0,))) for row in rows]
    parts = in_batches(requests, options.batch_size)
    reads = iterate(networks.dataset(run, samples), parts, options.decoders)
    bad: list[str] = []

    def clips() -> Generator[dict[str, torch.Tensor], None, None]:
        for batch in track(reads, total=len(parts), what="fitting the projection", unit="batches"):
            good = [read for read in batch if read.clips is not None]
            bad.extend(read.error for read in batch if read.error is not None)
            if good:
                yield {role: networks.clips_of(role, good) for role in Teachers._fields}

    for of_batch in ahead(clips()):
        vit, cnn = (next(networks.outputs_of(role, of_batch[role])) for role in Teachers._fields)
        finite = torch.isfinite(vit.map).flatten(1).all(1)
        finite &= torch.isfinite(cnn.map).flatten(1).all(1)
        sums.update(vit.map[finite], cnn.map[finite])
    try:
        projection = sums.fit(
            kind=config.kind, dim=config.dim, ridge=config.ridge, seed=config.seed
        )
    except ValueError as error:
        if len(bad) > run.extract.max_failed_share * len(rows):
            raise ExtractError(
                f"{len(bad)} of the {len(rows)} samples on which the projection is fitted cannot "
                f"be read, more than extract.max_failed_share {run.extract.max_failed_share:.0%} "
                f"allows, and the others are too few; the last one: {bad[-1]}"
            ) from error
        unread = f" ({len(bad)} of them cannot be read; the last one: {bad[-1]})" if bad else ""
        raise ExtractError(
            f"the projection cannot be fitted on {len(rows)} samples{unread}: {error}. "
            "Raise extract.projection.samples in the config, or --limit"
        ) from error
    console.print(
        f"projection {config.kind}: {sums.count} vectors; a linear map of the CNN's features "
        f"explains {projection.explained:.1%} of the ViT's"
    )
    return projection


def _provenance(run: Run, options: Options, accuracy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **environment(),
        "device": str(options.device),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[run.extract.precision],
    }


def _extract_chunks(
    options: Options,
    wanted: Wanted,
    writer: CacheWriter,
    cache: TeacherCache,
    pending: Sequence[PendingChunk],
) -> None:
    """Make what is pending; each chunk is written as soon as its samples are through."""
    run, failed = wanted.run, cache.failures
    _warn_of_memory(options, writer.layout, pending)

    def note(failures: Mapping[str, str]) -> None:
        failed.update(failures)
        _check_failures(run, options.out, failed, writer)

    rows = sum(len(writer.sample_range(work.chunk)) * len(work.views) for work in pending)
    with meter("extracting", total=rows, unit="views") as counter:
        if options.workers is None and options.scheduler is None:
            _extract_here(options, wanted, writer, cache, pending, note, counter)
        else:
            _extract_elsewhere(options, wanted, writer, pending, note, counter)


def _warn_of_memory(options: Options, layout: Layout, pending: Sequence[PendingChunk]) -> None:
    """Say so beforehand where the chunks that are under way at once may not fit into memory."""
    if options.scheduler is not None:
        return  # not this machine's
    largest = max(
        len(layout.sample_range(work.chunk))
        * len(work.views)
        * sum(layout.fields[name].row_bytes for name in work.fields)
        for work in pending
    )
    need = memory_of_chunks(largest, options.workers)
    if need > _MEMORY_SHARE * (free := free_memory()):
        console.print(
            f"chunks on their way take up to {size(need)}, and {size(free)} of memory are free: "
            "a smaller extract.chunk_samples (of a new cache), JPEG clips or fewer workers take "
            "less"
        )


def _extract_here(
    options: Options,
    wanted: Wanted,
    writer: CacheWriter,
    cache: TeacherCache,
    pending: Sequence[PendingChunk],
    note: Callable[[Mapping[str, str]], None],
    counter: Meter,
) -> None:
    """In this process, on one device."""
    maker = ChunkMaker(
        wanted.run,
        wanted.networks,
        cache,
        batch_size=options.batch_size,
        decoders=options.decoders,
    )

    def write(work: PendingChunk, chunk: ChunkArrays) -> None:
        failures = chunk.failures(maker.samples)
        writer.write_chunk(work.chunk, chunk.arrays, work.views, failures=failures)
        note(failures)

    maker.make(pending, write, counter.advance)
    if maker.decoders_wanted is not None:
        share = maker.waited_sec / (maker.waited_sec + maker.busy_sec)
        console.print(
            f"decoding is the limit: the networks waited for clips for {percent(share, 0)} of the "
            f"time; --decoders {maker.decoders_wanted}, with a core each, would be enough (this "
            f"machine has {plural(os.cpu_count() or 1, 'core')})"
        )


def _extract_elsewhere(
    options: Options,
    wanted: Wanted,
    writer: CacheWriter,
    pending: Sequence[PendingChunk],
    note: Callable[[Mapping[str, str]], None],
    counter: Meter,
) -> None:
    """By the workers of a cluster; this process commits what they stage."""
    from distributed import Client  # noqa: PLC0415 (takes seconds to import)

    from stages import cluster, cluster_worker  # noqa: PLC0415
    from stages.local_cluster import local_cluster  # noqa: PLC0415

    wanted.networks.leave_device()  # the workers load their own, maybe on the same one
    local = options.scheduler is None
    recipe = cluster_worker.recipe_for(
        wanted.run,
        wanted.table,
        wanted.teachers,
        options.out,
        device=options.device.type if local else options.worker_device,
        batch_size=options.batch_size,
        decoders=options.decoders,
    )

    def commit(staged: StagedChunk) -> None:
        writer.commit(staged)
        note(staged.failures)

    started = (
        local_cluster(options.workers or 1, options.device)
        if options.scheduler is None
        else nullcontext(options.scheduler)
    )
    with started as address:
        console.print(f"connecting to the scheduler {address}")
        cluster.make_chunks(lambda: Client(address), recipe, pending, commit, counter)


def _check_failures(run: Run, out: Path, failed: Mapping[str, str], writer: CacheWriter) -> None:
    """Stop where too many samples failed, in this run or before."""
    limit, samples = run.extract.max_failed_share, writer.layout.num_samples
    if len(failed) > limit * samples:
        name, reason = list(failed.items())[-1]
        repair = command("dualkd-cache", "repair", "--failed", out)
        raise ExtractError(
            f"{len(failed)} of {samples} samples failed, more than extract.max_failed_share "
            f"{limit:.0%} allows; the last one was {name}: {reason}. What was made is kept in "
            f"{out}. Once the videos can be read, `{repair}` drops the "
            "chunks that hold failed samples, and the next extract makes them again"
        )


def _summarise(run: Run, out: Path) -> None:
    stored = open_cache(out)
    status = stored.status
    failed = len(stored.failures)
    console.print(
        f"{out}: {stored.num_samples} samples × {stored.num_views} views, "
        f"{sum(stored.bytes_by_field().values()) / 1e6:.1f} MB, {failed} samples failed, "
        f"fingerprint {stored.fingerprint[:12]}"
    )
    covered = stored.coverage_by_field()
    partial = ", ".join(f"{name} {there:.1%}" for name, there in covered.items() if there < 1)
    if partial:
        console.print(f"{out}: not asked for now, and there in part: {partial}")
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
