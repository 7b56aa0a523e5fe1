"""What the commands of both programs share: their options, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from cache import Store
    from pipeline.config import Run

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
Jobs = Annotated[int, typer.Option(min=1, help="Files that travel at once.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Where chunk files of a cache at a URL are kept; below the user's cache folder if "
        "not given.",
    ),
]
StoreSize = Annotated[
    float, typer.Option("--store-gb", min=0.001, help="How much may be kept there, in GB.")
]
CheckpointSteps = Annotated[int, typer.Option(min=1, help="Steps from one checkpoint to the next.")]
Clips = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL", help="Store this student's clips too, besides those of the config."
    ),
]
ClipsAs = Annotated[
    str | None,
    typer.Option(
        metavar="raw|jpeg",
        help="How clips are stored that the cache does not have yet; extract.clip_format if not "
        "given.",
    ),
]


def folder_of(place: str) -> Path:
    """A cache's folder; a URL would become a strange one."""
    from cache import checked_address, is_url, public_url

    if is_url(place):
        raise typer.BadParameter(
            f"{public_url(place)} is a URL; this command needs a folder on this machine"
        )
    checked_address(place)
    return Path(place)


def names_of(text: str | None, option: str) -> tuple[str, ...] | None:
    """The names of an option as `vit/logits,cnn/logits`; None where it is not given."""
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise typer.BadParameter(f"{option} is {text!r}, which names nothing; leave it out for all")
    return names


def numbers_of(text: str | None, option: str) -> tuple[int, ...] | None:
    """The numbers of an option as `0,1`; None where it is not given."""
    names = names_of(text, option)
    strange = [name for name in names or () if not name.isdecimal()]
    if strange:
        raise typer.BadParameter(f"{option} takes numbers as 0,1; got {strange[0]!r}")
    return None if names is None else tuple(map(int, names))


def chosen_of(
    text: str, option: str, known: Sequence[str], most: int | None = None
) -> tuple[str, ...]:
    """The names of an option, each of them one of the known."""
    names = tuple(dict.fromkeys(names_of(text, option) or ()))
    strange = [name for name in names if name not in known]
    if strange or not names or len(names) > (most or len(names)):
        raise typer.BadParameter(f"{option} takes {', '.join(known)}; got {text!r}")
    return names


class MissingPackageError(ImportError):
    """A package that a command needs is not installed; the message says how to."""


def need(*packages: str) -> None:
    """Check that packages can be imported, before any work.

    Raises:
        MissingPackageError: some cannot.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"this command needs {', '.join(missing)}, which this environment lacks: pip install "
            f"-c constraints.txt {' '.join(missing)}"
        )


def store_of(folder: Path | None, gigabytes: float) -> Store:
    """Where chunk files of a cache at a URL are kept."""
    from cache import Store

    size = int(gigabytes * 1e9)
    return Store(limit=size) if folder is None else Store(folder.absolute(), size)


def load(dataset: str, root: Path | None = None) -> Run:
    """Load a config; its videos may lie elsewhere on this machine."""
    from pipeline.config_file import config_path, load_config

    run = load_config(config_path(dataset))
    if root is None:
        return run
    if not root.is_dir():
        raise typer.BadParameter(f"--root {root} is no folder; the config says {run.prepare.root}")
    return run.model_copy(update={"prepare": run.prepare.model_copy(update={"root": str(root)})})


def device_of(name: str) -> torch.device:
    """The device of an option; torch is imported only now."""
    from pipeline.devices import DeviceError, find_device

    try:
        return find_device(name)
    except DeviceError as error:
        raise typer.BadParameter(str(error)) from error


def with_clips(run: Run, models: Sequence[str] | None, stored_as: str | None) -> Run:
    """The run with these students' clips besides those of its config, and stored in this way."""
    if stored_as not in (None, "raw", "jpeg"):
        raise typer.BadParameter(f"--clips-as takes raw or jpeg, got {stored_as!r}")
    from pipeline.model_names import check_model_name

    wanted = [*run.extract.clips, *map(check_model_name, models or [])]
    changed: dict[str, Any] = {"clips": list(dict.fromkeys(wanted))}
    if stored_as is not None:
        changed["clip_format"] = stored_as
    return run.model_copy(update={"extract": run.extract.model_copy(update=changed)})


def tell(facts: Any, show: Callable[[Any], object], as_json: bool) -> None:
    """Print what a command found, for people or for programs."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)
