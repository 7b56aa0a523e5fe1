"""The two commands, `dualkd` and `dualkd-cache`; each only reads its options and calls a stage.

Stages are imported when they run: `--help` and mistakes answer at once, without torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from stages.wording import printable

if TYPE_CHECKING:
    import torch

    from pipeline.config import Run

_INTERRUPTED = 130  # the exit code after Ctrl-C
_ORDERLY_SEC = 5.0  # for the end after it
_KEPT = "interrupted: what was finished is kept, and the same command makes the rest"

app = typer.Typer(
    help="Distil two big video models into a small one, from a cache of their outputs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(
    help="Make, inspect, prove and mend teacher caches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Dataset = Annotated[str, typer.Option(help="Reads configs/DATASET.yaml.")]
Root = Annotated[
    Path | None, typer.Option(help="Where the videos are, if not at the config's prepare.root.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
CacheFolder = Annotated[str, typer.Argument(help="The cache's folder.")]
Decoders = Annotated[
    int, typer.Option(min=0, help="Processes that decode video; 0 decodes in this one.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")
]
WorkersDecoders = Annotated[
    int,
    typer.Option(
        min=0,
        help="Processes that decode video, of this process and of each worker, on its machine; "
        "with 0 they decode themselves.",
    ),
]
Views = Annotated[
    int | None,
    typer.Option(min=1, help="Views of each sample; extract.views.count if not given."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips in one forward pass.")]
CachePath = Annotated[
    str | None,
    typer.Option("--cache", help="The cache, a folder or URL; outputs/DATASET/cache if not given."),
]


@app.command()
def prepare(
    dataset: Dataset,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Where the videos are; a link to it is made at the config's prepare.root, by "
            "which all later commands find them."
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Open every video and decode a frame; goes on after an interruption.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that probe or render; one per core if not given."),
    ] = None,
) -> None:
    """Turn a dataset into a samples table, and say what of it is missing.

    The layout is recognised (docs/datasets.md shows those that are known). Writes, below
    outputs/DATASET/: samples.parquet, the table; prepare.json, how many samples are listed, found,
    missing and (with --probe) unreadable, per split and class; missing.csv, which ones and why.
    The demo's videos are rendered here.
    """
    from stages.prepare import linked_root
    from stages.prepare import prepare as stage

    run = _load(dataset)
    with linked_root(Path(run.prepare.root), root) if root else nullcontext(False) as is_new:
        samples = stage(run, probe=probe, workers=workers)
    if root and is_new:
        typer.echo(f"{run.prepare.root} is now a link to {root.resolve()}")
    counts = ", ".join(f"{count} {split}" for split, count in samples.splits().items())
    typer.echo(f"{dataset}: {counts} samples")


@app.command()
def teach(
    dataset: Dataset,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train them and overwrite their weights files; goes on after an interruption.",
        ),
    ] = False,
    only: Annotated[str | None, typer.Option(help="Train only vit or only cnn.")] = None,
    decoders: Decoders = 0,
    device: Device = "auto",
) -> None:
    """Score the two teachers on the evaluation split; with --train, train them first."""
    if only not in (None, "vit", "cnn"):
        raise typer.BadParameter(f"--only takes vit or cnn, got {only!r}")
    if only is not None and not train:
        raise typer.BadParameter("--only says which teacher --train trains; give --train too")
    from stages.teach import teach as stage

    stage(_load(dataset), train_them=train, only=only, device=_device(device), decoders=decoders)


@app.command()
def distill(
    dataset: Dataset,
    cache: CachePath = None,
    decoders: Decoders = 0,
    device: Device = "auto",
    checkpoint_steps: Annotated[
        int, typer.Option(min=1, help="Steps from one checkpoint to the next.")
    ] = 200,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what an interrupted run has left.")
    ] = False,
) -> None:
    """Train the student from the cache, and the same student from labels alone.

    An interrupted run goes on where it was. On several GPUs:
    torchrun --nproc-per-node N --no-python dualkd distill --dataset NAME
    """
    from stages.distill import Options
    from stages.distill import distill as stage

    run = _load(dataset)
    options = Options(
        cache or run.cache_path, _device(device), decoders, checkpoint_steps, anew=anew
    )
    stage(run, options)


@app.command()
def evaluate(
    dataset: Dataset, decoders: Decoders = 0, device: Device = "auto", batch_size: BatchSize = 32
) -> None:
    """Score teachers, baseline and student on the same test clips."""
    from stages.evaluate import evaluate as stage

    stage(_load(dataset), device=_device(device), decoders=decoders, batch_size=batch_size)


@app.command()
def report(
    dataset: Dataset,
    cache: Annotated[
        str | None, typer.Option(help="The cache; outputs/DATASET/cache if not given.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about the run."""
    from stages.report import report as stage

    run = _load(dataset)
    path = stage(run, cache_path=_folder(cache) if cache else run.cache_path)
    typer.echo(f"report: {path}")


@app.command()
def mean(
    datasets: Annotated[
        list[str], typer.Argument(help="Runs that `evaluate` has scored: configs/DATASET.yaml.")
    ],
    as_json: AsJson = False,
) -> None:
    """Average the accuracies of several runs: HMDB51's three official splits, or seeds."""
    from stages.mean import mean_of_runs, show

    facts = mean_of_runs([_load(dataset) for dataset in datasets])
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


@app.command()
def ablate(
    dataset: Dataset,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many, from the config's distill.seed on.")
    ] = 5,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Train only these variants; the table has the others too, where they stand.",
        ),
    ] = None,
    cache: CachePath = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trainings side by side; by default as many as cores and memory allow, on a GPU "
            "one.",
        ),
    ] = None,
    decoders: Decoders = 0,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    checkpoint_steps: Annotated[
        int, typer.Option(min=1, help="Steps from one checkpoint to the next.")
    ] = 200,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what stands of the chosen variants and seeds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the parts of the method, and other people's, over several seeds.

    All students learn from one cache. The table is printed and written below
    outputs/DATASET/ablate; docs/ablation.md tells what it compares. An
    interrupted run goes on where it was, and what is done is not done again.
    """
    from stages.ablate import Options, check_all_there
    from stages.ablate import ablate as stage
    from stages.ablation_table import show
    from stages.variants import chosen

    names = chosen(only)
    run = _load(dataset)
    options = Options(
        cache=cache or run.cache_path,
        seeds=seeds,
        only=names,
        device=_device(device),
        decoders=decoders,
        batch_size=batch_size,
        at_once=at_once,
        checkpoint_steps=checkpoint_steps,
        anew=anew,
    )
    facts = stage(run, options)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)
    check_all_there(facts)


@app.command()
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only these, or timm/NAME; without, all but timm's, which takes minutes."
        ),
    ] = None,
    versus: Annotated[str | None, typer.Option(help="Add what each saves beside this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the networks: what each takes, gives and costs."""
    from stages.models import models as stage
    from stages.models import show

    facts = stage(names or [], versus)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


@cache_app.command()
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
    clips: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Store this student's clips too, besides those of the config."
        ),
    ] = None,
    clips_as: Annotated[
        str | None,
        typer.Option(
            metavar="raw|jpeg",
            help="How clips are stored that the cache does not have yet; extract.clip_format if "
            "not given.",
        ),
    ] = None,
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
    if clips_as not in (None, "raw", "jpeg"):
        raise typer.BadParameter(f"--clips-as takes raw or jpeg, got {clips_as!r}")
    from pipeline.model_names import check_model_name
    from stages.extract import Options
    from stages.extract import extract as stage

    run = _load(dataset, root)
    if clips:
        wanted = [*run.extract.clips, *map(check_model_name, clips)]
        section = run.extract.model_copy(update={"clips": list(dict.fromkeys(wanted))})
        run = run.model_copy(update={"extract": section})
    if clips_as is not None:
        section = run.extract.model_copy(update={"clip_format": clips_as})
        run = run.model_copy(update={"extract": section})
    options = Options(
        out=_folder(out) if out else run.cache_path,
        views=views or run.extract.views.count,
        limit=limit,
        decoders=decoders,
        batch_size=batch_size,
        replace=replace,
        device=_device("auto" if scheduler else device),
        workers=workers,
        scheduler=scheduler,
        worker_device=None if device == "auto" else device,
    )
    stage(run, options)


@cache_app.command()
def plan(
    dataset: Dataset,
    root: Root = None,
    views: Views = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples.")] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="So many workers, each with a GPU as the one at hand; on a CPU they share its "
            "cores, and are no faster than one.",
        ),
    ] = 1,
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
    hand; nothing is written. Give the options that `extract` will have.
    """
    from stages.plan import Options
    from stages.plan import plan as stage
    from stages.plan_table import show

    run = _load(dataset, root)
    options = Options(
        views=views or run.extract.views.count,
        limit=limit,
        decoders=decoders,
        batch_size=batch_size,
        seconds=seconds,
        device=_device(device),
        workers=workers,
    )
    facts = stage(run, options)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


@cache_app.command()
def info(
    path: Annotated[str, typer.Argument(help="The cache, a folder or URL.")],
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds."""
    from cache import describe

    facts = describe(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from stages.info import show

    show(facts)


@cache_app.command()
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

        options = Options(recompute, seed, decoders, batch_size, _device(device))
        again = partial(make_again, _load(dataset, root), _folder(path), options)
    elif recompute:
        raise typer.BadParameter("--recompute needs --dataset: whose teachers, on which videos?")
    elif root is not None:
        raise typer.BadParameter("--root needs --dataset and --recompute: which videos are read?")
    facts = stage(_folder(path), again)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)
    if not facts["ok"]:
        raise typer.Exit(1)


@cache_app.command()
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

    if not stage(_folder(path), failed=failed):
        raise typer.Exit(1)


def _folder(place: str) -> Path:
    """A cache's folder; a URL would become a strange one."""
    if "://" in place:
        raise typer.BadParameter(f"{place} is a URL; this command needs a folder on this machine")
    return Path(place)


def _load(dataset: str, root: Path | None = None) -> Run:
    """Load a config; its videos may lie elsewhere on this machine."""
    from pipeline.config_file import config_path, load_config

    run = load_config(config_path(dataset))
    if root is None:
        return run
    if not root.is_dir():
        raise typer.BadParameter(f"--root {root} is no folder; the config says {run.prepare.root}")
    return run.model_copy(update={"prepare": run.prepare.model_copy(update={"root": str(root)})})


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"device {name!r} cannot be used: {error}") from error
    return device


def _run(command: typer.Typer) -> None:
    """Run a command; what a user can mend is one message, everything else a traceback."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        command()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer makes it of KeyboardInterrupt
            typer.echo(_KEPT, err=True)
        raise
    except Exception as error:
        if not _explains_itself(error):
            raise
        typer.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(1)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End this command in order on Ctrl-C; at once on another, or when that takes long."""
    signal.signal(signal.SIGINT, lambda _signal, _frame: _end_at_once())
    deadline = threading.Timer(_ORDERLY_SEC, _end_at_once)
    deadline.daemon = True
    deadline.start()
    logging.disable()  # of what is cut off on the way
    raise KeyboardInterrupt


def _end_at_once() -> None:
    """End without waiting: other processes end with this one, the next command tidies up."""
    below_bar = "\n\x1b[?25h" if sys.stderr.isatty() else ""  # which hides the cursor
    typer.echo(f"{below_bar}{_KEPT}", err=True)
    os._exit(_INTERRUPTED)


def _explains_itself(error: Exception) -> bool:
    """Whether an error is one of ours, whose message says what to do."""
    return type(error).__module__.split(".")[0] in ("cache", "pipeline", "stages") or isinstance(
        error, OSError
    )


def main() -> None:
    """The command `dualkd`."""
    _run(app)


def cache_main() -> None:
    """The command `dualkd-cache`."""
    _run(cache_app)
