"""The command `dualkd`: each of its commands only reads its options and calls a stage.

Stages are imported when they run: `--help` and mistakes answer at once, without torch.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from stages.cli_options import (
    AsJson,
    BatchSize,
    CachePath,
    CheckpointSteps,
    Dataset,
    Decoders,
    Device,
    StoreFolder,
    StoreSize,
    chosen_of,
    device_of,
    load,
    names_of,
    need,
    store_of,
    tell,
)
from stages.cli_running import run_command

app = typer.Typer(
    help="Distil two big video models into a small one, from a cache of their outputs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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

    run = load(dataset)
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

    stage(load(dataset), train_them=train, only=only, device=device_of(device), decoders=decoders)


@app.command()
def distill(
    dataset: Dataset,
    cache: CachePath = None,
    decoders: Decoders = 0,
    device: Device = "auto",
    checkpoint_steps: CheckpointSteps = 200,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what an interrupted run has left.")
    ] = False,
    store: StoreFolder = None,
    store_gb: StoreSize = 20.0,
) -> None:
    """Train the student from the cache, and the same student from labels alone.

    An interrupted run goes on where it was. On several GPUs:
    torchrun --nproc-per-node N --no-python dualkd distill --dataset NAME
    """
    from stages.distill import Options
    from stages.distill import distill as stage

    run = load(dataset)
    options = Options(
        cache or run.cache_path,
        device_of(device),
        decoders,
        checkpoint_steps,
        anew=anew,
        store=store_of(store, store_gb),
    )
    stage(run, options)


@app.command()
def evaluate(
    dataset: Dataset, decoders: Decoders = 0, device: Device = "auto", batch_size: BatchSize = 32
) -> None:
    """Score teachers, baseline and student on the same test clips."""
    from stages.evaluate import evaluate as stage

    stage(load(dataset), device=device_of(device), decoders=decoders, batch_size=batch_size)


@app.command()
def export(
    dataset: Dataset,
    formats: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="onnx; int8, ONNX in 8 bits; pt2, for torch.export.load. Files of other formats "
            "are removed.",
        ),
    ] = "onnx,int8,pt2",
    student: Annotated[str, typer.Option(metavar="student|baseline", help="Which.")] = "student",
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            help="Top-1 that 8 bits may lose; the config's export.max_loss if not given.",
        ),
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option("--go-on", help="8 bits that lose too much are left out, and are no error."),
    ] = False,
    decoders: Decoders = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Write the student as ONNX, in 8 bits and by torch.export, with a model card.

    Each file takes its place below outputs/DATASET/export only once it is
    proven: the plain backbone and nothing else, the same answers as PyTorch on real clips, and no
    more lost by 8 bits than is allowed. export.json has what was found. docs/deployment.md.
    """
    wanted = chosen_of(formats, "--formats", ("onnx", "int8", "pt2"))
    (who,) = chosen_of(student, "--student", ("student", "baseline"), most=1)
    need("onnx", "onnxruntime", "onnxscript")
    from stages.export import Options
    from stages.export import export as stage

    if max_loss is not None and not math.isfinite(max_loss):
        raise typer.BadParameter(f"--max-loss takes points, as 1.5; got {max_loss}")
    options = Options(
        student=who,
        formats=wanted,
        max_loss=max_loss,
        go_on=go_on,
        decoders=decoders,
        batch_size=batch_size,
    )
    typer.echo(f"export: {stage(load(dataset), options)}")


@app.command("bench-student")
def bench_student(
    dataset: Annotated[
        str | None, typer.Option(help="Measures its student and teachers; reads its config.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Measure this network instead, with random weights."),
    ] = None,
    teachers: Annotated[
        str | None,
        typer.Option(metavar="MODEL[,MODEL]", help="Beside these, with random weights."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Clips at once, where throughput is measured.")
    ] = 8,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Measure how fast the student answers beside its teachers, in one run.

    By PyTorch and ONNX Runtime (float32, 8 bits), on one core and on all, and on a GPU where there
    is one: milliseconds of one clip, clips per second of many, and first of all how many times as
    fast as the ViT teacher that is.
    """
    if (dataset is None) == (student is None):
        raise typer.BadParameter("give --dataset NAME, or --student MODEL with --teachers")
    if (student is None) != (teachers is None):
        raise typer.BadParameter("--student and --teachers go together")
    need("onnx", "onnxruntime", "onnxscript")
    from stages.bench_student import Options, bench, by_name, of_run
    from stages.bench_table import show

    if student is not None:
        networks = by_name(student, names_of(teachers, "--teachers") or ())
    else:
        networks = of_run(load(str(dataset)))
    facts = bench(networks, Options(batch, turns), random=student is not None)
    tell(facts, show, as_json)


@app.command()
def report(
    dataset: Dataset,
    cache: CachePath = None,
) -> None:
    """Write one self-contained HTML page about the run."""
    from stages.report import report as stage

    run = load(dataset)
    path = stage(run, cache_path=cache or run.cache_path)
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

    facts = mean_of_runs([load(dataset) for dataset in datasets])
    tell(facts, show, as_json)


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
    checkpoint_steps: CheckpointSteps = 200,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what stands of the chosen variants and seeds.")
    ] = False,
    store: StoreFolder = None,
    store_gb: StoreSize = 20.0,
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
    run = load(dataset)
    options = Options(
        cache=cache or run.cache_path,
        seeds=seeds,
        only=names,
        device=device_of(device),
        decoders=decoders,
        batch_size=batch_size,
        at_once=at_once,
        checkpoint_steps=checkpoint_steps,
        anew=anew,
        store=store_of(store, store_gb),
    )
    facts = stage(run, options)
    tell(facts, show, as_json)
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
    tell(facts, show, as_json)


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="A student: exported (.onnx, .pt2), saved (.safetensors), or the folder that it "
            "was trained in."
        ),
    ],
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO…", help="Files, folders of them, or frames with their rate: DIR?fps=25."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes that are shown.")] = 5,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="A timeline: an answer every 1s, 500ms, 2min."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Views of a whole video: centre, 5x1, 10x1, 10x3.")
    ] = "centre",
    names: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Names of the classes: a text with one a line, JSON, or a samples table.",
        ),
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each answer.")
    ] = False,
) -> None:
    """Say what a student sees in videos.

    Of each video its best classes with their probabilities; with --every, which class is on top
    when. A video that cannot be read does not stop the others; the exit code is then 1.
    """
    from pipeline.student import load_student
    from stages.predict import Options, path_of, protocol_of, seconds_of
    from stages.predict import predict as stage
    from stages.predict_output import print_lines, show, show_timeline, tell_failed

    every_sec = None if every is None else seconds_of(every)
    options = Options(protocol_of(protocol, every_sec), every_sec, batch_size)
    files = [path_of(video, "VIDEO") for video in videos]
    student = load_student(
        path_of(model, "MODEL"),
        names=None if names is None else path_of(names, "--classes"),
        device=device,
    )
    answers = stage(student, files, options)
    if as_json:
        failed = print_lines(answers, student.classes, top)
    elif every_sec is None:
        failed = show(answers, student.classes, top)
    else:
        failed = show_timeline(answers, student.classes, every_sec)
    if failed:
        tell_failed(failed)
        raise typer.Exit(1)


def main() -> None:
    """The command `dualkd`."""
    run_command(app)
