"""Reading a file of weights, whoever wrote it: its tensors by name. Nothing is ever unpickled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")

_DEEPEST = 4  # wrappers inside wrappers


class WeightsError(ValueError):
    """Weights cannot be used; the message names the file and what is wrong."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and, if it is a safetensors file, its metadata.

    The content decides what the file is, not its suffix: a safetensors file, or what `torch.save`
    made of a state dict, plain or inside one of `WRAPPERS`. The latter is read with
    `weights_only=True`: a file whose pickle asks for anything but tensors and plain containers is
    refused. A link is read like the file that it leads to, as DVC and hubs place such links.

    Args:
        path: the file.

    Returns:
        The tensors by the file's own names, and the metadata.

    Raises:
        WeightsError: there is no such file, it is not what it should be, or it holds no state dict.
    """
    begin = _begin(path)
    if begin[8:9] == b"{":  # behind the header's length, the header
        return _read_safetensors(path)
    if begin[:4] == b"PK\x03\x04" or begin[:1] == b"\x80":  # its zip archives, its older pickles
        return _unwrap(path, _read_saved(path)), {}
    raise WeightsError(
        f"{path} is not a safetensors file, nor one that torch.save wrote"
        + (": it is empty" if not begin else f": it begins with {begin[:8]!r}")
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        WeightsError: the file is missing or is no safetensors file.
    """
    _begin(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error


def strip_prefixes(names: Mapping[str, object]) -> str:
    """The prefix that all names begin with, made of `PREFIXES`; empty where one name lacks it.

    `module._orig_mod.` for a network that was compiled, then wrapped for several GPUs.
    """
    prefix = ""
    while names:
        found = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in names)]
        if not found:
            break
        prefix += found[0]
    return prefix


def shown(names: list[str], most: int = 8) -> str:
    """Names for a message: the first few and how many there are; odd ones quoted and cut."""
    listed = [name if name.isprintable() else repr(name) for name in names[:most]]
    listed = [name if len(name) <= 120 else name[:117] + "..." for name in listed]
    more = f" and {len(names) - most} more ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(listed) + more


def _begin(path: Path) -> bytes:
    """The first bytes of a file."""
    if not path.exists():
        if path.is_symlink():
            raise WeightsError(f"no weights at {path}: it is a link that leads to no file")
        raise WeightsError(
            f"no weights at {path}; `dualkd teach --train` makes a teacher's, `dualkd distill` a "
            "student's; `weights: published` takes the library's own"
        )
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise WeightsError(f"no weights at {path}: it is {what}, name the file itself")
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = read_metadata(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    return tensors, metadata


def _read_saved(path: Path) -> Any:
    """What `torch.save` wrote, of tensors and plain containers only."""
    try:
        # Opened here: newer versions of torch.load go by the suffix of a path.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, of old storages: no way out here
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a pickle of somebody else may bring about
        # Not torch's own message: it advises to load the file with weights_only=False.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or "weights_only" in str(error):
            needs = f"it asks for {named[1]}" if named else "it is more than a state dict"
            raise WeightsError(
                f"{path} is refused: {needs}, and weights are read without running any code of the "
                "file. Ask its maker for the state dict alone, as safetensors. Or, if you trust "
                "the maker, load it once where nothing can be lost (a container without network) "
                "and keep its tensors only: torch.save(torch.load(OLD, weights_only=False)"
                '["state_dict"], NEW), or .state_dict() where a whole network was saved'
            ) from error
        raise WeightsError(
            f"{path} is not a safetensors file, and torch.save wrote it only in part or not at "
            f"all (damaged, or cut short in a copy?): {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict inside the wrappers that zoos and training scripts put around it."""
    place = ""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise WeightsError(f"{path}{place} is a {type(content).__name__}, not a state dict")
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): tensor for name, tensor in content.items()}
        inside = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inside) != 1:
            break
        content, place = content[inside[0]], f"{place}[{inside[0]!r}]"
    else:
        inside = []
    if len(inside) > 1:
        raise WeightsError(f"{path}{place} holds several state dicts: {shown(inside)}; keep one")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    raise WeightsError(
        f"{path}{place} holds no state dict: "
        + (f"not tensors are {shown(others)}" if others else "it is empty")
        + f"; looked for one under {', '.join(WRAPPERS)}"
    )
