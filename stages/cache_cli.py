"""The command `dualkd-cache`: each of its commands only reads its options and calls a stage.

Stages are imported when they run: `--help` and mistakes answer at once, without torch.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from stages.cli_options import (
    AsJson,
    BatchSize,
    CacheFolder,
    Clips,
    ClipsAs,
    Dataset,
    Decoders,
    Device,
    Jobs,
    Root,
    Views,
    WorkersDecoders,
    device_of,
    folder_of,
    load,
    names_of,
    numbers_of,
    tell,
    with_clips,
)
from stages.cli_running import run_command

app = typer.Typer(
    help="Make, inspect, prove, mend and share teacher caches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def extract(
    dataset: Dataset,
    root: Root = None,
    out: Annotated[
        str | None, typer.Option(help="The cache; outputs/DATASET/cache if not given.")
    ] = None,
    views: Views = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only so many samples, drawn at random; the cache may grow later."
        ),
    ] = None,
    clips: Clips = None,
    clips_as: ClipsAs = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Make the chunks by so many workers on this machine: one per GPU, or shares of "
            "the CPU.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            help="Make the chunks by the workers of this dask scheduler, as tcp://head:8786; "
            "--device is theirs.",
        ),
    ] = None,
    decoders: WorkersDecoders = 0,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move another cache at --out aside; else refuse it.")
    ] = False,
) -> None:
    """Run both teachers over every view once; goes on where an interrupted run stopped.

    By default this process makes all chunks, on one device. With --workers or --scheduler dask
    workers make them (docs/scale.md); this process scores the teachers, fits the projection, and
    commits what they make.
    """
    if workers is not None and scheduler is not None:
        raise typer.BadParameter("--workers starts a scheduler, --scheduler names one: give one")
    from stages.extract import Options
    from stages.extract import extract as stage

    run = with_clips(load(dataset, root), clips, clips_as)
    options = Options(
        out=folder_of(out) if out else run.cache_path,
        views=views or run.extract.views.count,
        limit=limit,
        decoders=decoders,
        batch_size=batch_size,
        replace=replace,
        device=device_of("auto" if scheduler else device),
        workers=workers,
        scheduler=scheduler,
        worker_device=None if device == "auto" else device,
    )
    stage(run, options)


@app.command()
def plan(
    dataset: Dataset,
    root: Root = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The cache, outputs/DATASET/cache if not given: where one stands, only the rest "
            "is planned."
        ),
    ] = None,
    views: Views = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples.")] = None,
    clips: Clips = None,
    clips_as: ClipsAs = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many workers, each with a GPU as the one at hand; on a CPU they share its "
            "cores, and are no faster than one.",
        ),
    ] = None,
    decoders: WorkersDecoders = 0,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long each part is tried out, at most about.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say what an extraction will take: bytes, hours, and when it has paid.

    Some samples are decoded and run through the networks, with random weights, on the device at
    hand; nothing is written. Give the options that `extract` will have. A cache that stands is
    checked as `extract` does, but for the weights of the teachers.
    """
    from stages.plan import Options
    from stages.plan import plan as stage
    from stages.plan_table import show

    run = with_clips(load(dataset, root), clips, clips_as)
    options = Options(
        out=folder_of(out) if out else run.cache_path,
        views=views or run.extract.views.count,
        limit=limit,
        decoders=decoders,
        batch_size=batch_size,
        seconds=seconds,
        device=device_of(device),
        workers=workers,
    )
    facts = stage(run, options)
    tell(facts, show, as_json)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="The cache, a folder or URL.")],
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds."""
    from cache import describe
    from stages.info import show

    tell(describe(path), show, as_json)


@app.command()
def verify(
    path: CacheFolder,
    recompute: Annotated[
        int, typer.Option(min=0, help="Run the teachers again on so many random valid rows.")
    ] = 0,
    dataset: Annotated[
        str | None,
        typer.Option(help="Compare with the teachers and samples of configs/DATASET.yaml."),
    ] = None,
    root: Root = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the rows of --recompute.")] = 0,
    as_json: AsJson = False,
    decoders: Decoders = 0,
    device: Device = "auto",
    batch_size: BatchSize = 32,
) -> None:
    """Read every byte of a cache and name whatever is not as it was recorded.

    Exits with 0 where nothing is damaged, be the cache complete or not, else with 1. With
    --dataset it must also be the cache that the config describes, with --recompute down to its
    values: the same decoded frames, exactly, and the same outputs within a tolerance.
    """
    from stages.verify import show
    from stages.verify import verify as stage

    again = None
    if dataset is not None:
        from stages.recompute import Options
        from stages.recompute import recompute as make_again

        options = Options(recompute, seed, decoders, batch_size, device_of(device))
        again = partial(make_again, load(dataset, root), folder_of(path), options)
    elif recompute:
        raise typer.BadParameter("--recompute needs --dataset: whose teachers, on which videos?")
    elif root is not None:
        raise typer.BadParameter("--root needs --dataset and --recompute: which videos are read?")
    facts = stage(folder_of(path), again)
    tell(facts, show, as_json)
    if not facts["ok"]:
        raise typer.Exit(1)


@app.command()
def repair(
    path: CacheFolder,
    failed: Annotated[
        bool, typer.Option("--failed", help="Drop chunks with failed samples too, to retry them.")
    ] = False,
) -> None:
    """Drop the damaged chunks of a cache, so that the next extract makes just those again.

    Exits with 1 where something is left that it cannot repair.
    """
    from stages.verify import repair as stage

    if not stage(folder_of(path), failed=failed):
        raise typer.Exit(1)


@app.command()
def push(
    path: CacheFolder,
    url: Annotated[str, typer.Argument(help="The shelf: a folder, or as s3://bucket/caches.")],
    author: Annotated[
        str | None, typer.Option(help="Who pushes; git's user.name if not given.")
    ] = None,
    ours: Annotated[
        bool, typer.Option("--ours", help="Where rows differ there, put yours in their place.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read back what is there already, and mend what is damaged."),
    ] = False,
    jobs: Jobs = 8,
) -> None:
    """Send to a shelf what it lacks of a cache; all of it appears there at once.

    Caches lie there by dataset and fingerprint, so different ones never meet.
    A push that was killed goes on where it stopped; one that brings more views
    or fields sends only those.
    """
    from stages.share import push as stage

    stage(folder_of(path), url, author=author, jobs=jobs, ours=ours, check=check)


@app.command()
def pull(
    url: Annotated[
        str,
        typer.Argument(help="The cache's address, as `ls` shows it; or a folder with a cache."),
    ],
    path: CacheFolder,
    fields: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Only these, as vit/logits,cnn/logits."),
    ] = None,
    views: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Only these, as 0,1.")
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            help="Only so much of the samples, in (0, 1]: an unbiased part, in whole chunks, so "
            "maybe more."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only chunks that hold samples of this split.")
    ] = None,
    theirs: Annotated[
        bool, typer.Option("--theirs", help="Where rows differ, take those of there.")
    ] = False,
    jobs: Jobs = 8,
) -> None:
    """Fetch what a folder lacks of a cache: all, a part, or what others have added.

    Every file is checked against its checksum. A new cache appears when all
    has arrived; a pull that was killed goes on where it stopped. From another
    folder with the same cache it merges the two.
    """
    from cache import Selection
    from stages.share import pull as stage

    selection = Selection(
        fields=names_of(fields, "--fields"),
        views=numbers_of(views, "--views"),
        fraction=fraction,
        split=split,
    )
    stage(url, folder_of(path), selection, jobs=jobs, theirs=theirs)


@app.command("ls")
def list_caches(
    url: Annotated[str, typer.Argument(help="The shelf, or a dataset's folder on it.")],
    as_json: AsJson = False,
) -> None:
    """List the caches on a shelf: teachers, accuracy, extent, size, age, author.

    "samples × views" is what the cache has room for, "made" the part of these
    rows of which all fields are there, "pushed" how long ago something was
    last added, and by whom.
    """
    from stages.share import catalogue, show

    tell(catalogue(url), show, as_json)


def main() -> None:
    """The command `dualkd-cache`."""
    run_command(app)
