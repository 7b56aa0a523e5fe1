"""Published weights: each library's own tables and download; no host is named here."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor

from pipeline.checkpoints import WeightsError, read_checkpoint
from pipeline.datasets.k400 import class_names
from pipeline.model_names import MODEL_NAMES


def published_classes(name: str) -> list[str] | None:
    """The classes that a model's published weights answer, in order; None where that is not known.

    Those of torchvision and pytorchvideo are all of Kinetics-400: the 400 official names,
    alphabetical.
    """
    library = name.partition("/")[0]
    return class_names() if library in ("torchvision", "pytorchvideo") else None


class Source(NamedTuple):
    """Where a model's published weights come from.

    Attributes:
        url: the file, by the library's own table; for messages.
        place: where the library keeps the file once it is there; None: a cache of its own.
        download: the library's own way, which returns the state dict if the file is there already.
    """

    url: str
    place: Path | None
    download: Callable[[], Mapping[str, Any]]


def published_weights(name: str) -> dict[str, Tensor]:
    """The state dict that a model's makers published, by the library's own names.

    It is downloaded once and kept where the library keeps such files: for torchvision and
    pytorchvideo in `checkpoints` below `torch.hub.get_dir()` (set TORCH_HOME to move it), for timm
    in the cache of the Hugging Face hub. A file that was put there by hand is taken as it is.

    torchvision's weights are the `DEFAULT` of the model's enum. timm's are for single images.

    Args:
        name: the registry's name.

    Raises:
        WeightsError: the model has none (those that have some are listed), or they could not be
            downloaded: the message says what to fetch and where to put it. Nothing half-downloaded
            stays behind.
    """
    source = find_source(name)
    if source is None:
        raise WeightsError(
            f"{name} has no published weights; of the registry have some: "
            f"{', '.join(published_names()) or 'none'}. Train it (`dualkd teach --train`), or name "
            "a file"
        )
    place = source.place
    there = place is not None and place.exists()
    if not there:
        content = _download(name, source)
    if place is None:
        return dict(content)
    try:
        return read_checkpoint(place)[0]
    except WeightsError as error:
        if there:
            raise WeightsError(f"{error}. Remove it, and it is downloaded again") from error
        place.unlink()
        raise WeightsError(f"{error}. It was just downloaded, and is removed again") from error


def published_names() -> list[str]:
    """Those names of the registry that have published weights."""
    return [name for name in MODEL_NAMES if find_source(name) is not None]


def find_source(name: str) -> Source | None:
    """Look a model up in its library's tables; None where it has no weights."""
    library, _, short = name.partition("/")
    finders = {"torchvision": _torchvision, "pytorchvideo": _pytorchvideo, "timm": _timm}
    return finders[library](short) if library in finders else None


def _torchvision(short: str) -> Source | None:
    from torchvision.models import get_model_weights  # noqa: PLC0415 (seldom needed)

    try:
        weights = get_model_weights(short).DEFAULT
    except (ValueError, AttributeError):  # no such model there; one without weights
        return None

    def download() -> Mapping[str, Any]:
        content: Mapping[str, Any] = weights.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
        return content

    return Source(weights.url, _hub_place(weights.url), download)


def _pytorchvideo(short: str) -> Source | None:
    tables = (getattr(module, "checkpoint_paths", {}) for module in _pytorchvideo_hub())
    url = next((table[short] for table in tables if short in table), None)
    if url is None:
        return None

    def download() -> Mapping[str, Any]:
        # The names of its files carry no hash: nothing to check.
        content: Mapping[str, Any] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True
        )
        return content

    return Source(url, _hub_place(url), download)


def _pytorchvideo_hub() -> Iterator[Any]:
    """The modules of pytorchvideo's hub, each with a table of checkpoints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.script, which it calls at import
        from pytorchvideo.models import hub  # noqa: PLC0415 (seldom needed)

    return (module for module in vars(hub).values() if hasattr(module, "checkpoint_paths"))


def _timm(short: str) -> Source | None:
    import timm  # noqa: PLC0415 (seldom needed)

    try:
        config = timm.get_pretrained_cfg(short) if timm.is_model(short) else None
    except RuntimeError:  # no such tag of weights
        return None
    if config is None or not config.has_weights:
        return None
    if config.hf_hub_id:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 (seldom needed)

        filename = config.hf_hub_filename or "model.safetensors"
        url = hf_hub_url(config.hf_hub_id, filename)
    else:
        url = config.url

    def download() -> Mapping[str, Any]:
        # A whole network: timm renames the tensors of many checkpoints for the model they are for.
        content: Mapping[str, Any] = timm.create_model(short, pretrained=True).state_dict()
        return content

    return Source(str(url), None, download)


def _hub_place(url: str) -> Path:
    """Where torch.hub keeps the file of an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _download(name: str, source: Source) -> Mapping[str, Any]:
    """Let the library do it; what it downloaded but could not read is for the caller to read."""
    try:
        # torch.hub tells of the download on stdout, where answers as JSON are expected.
        with redirect_stdout(sys.stderr):
            return source.download()
    except Exception as error:  # of the network, of the hash, of a connection that ended early
        if source.place is not None and source.place.exists():
            return {}
        raise WeightsError(_what_to_do(name, source, error)) from error


def _what_to_do(name: str, source: Source, error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    lines = [
        f"the published weights of {name} could not be downloaded "
        f"({type(error).__name__}: {first[:200]}). To do it by hand:",
        f"1. fetch this file elsewhere: {source.url}",
    ]
    if source.place is not None:
        lines += [
            f"2. put it to {source.place}",
            "   and keep `published` in the teacher's section of the config;",
            "   or put it anywhere and write its path there in place of `published`",
        ]
    else:
        lines += ["2. put it anywhere and write its path in the config in place of `published`"]
    return "\n  ".join(lines)
