"""Weights: loaded into a network that they must fit, saved, and digested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pipeline.checkpoints import (
    WeightsError,
    read_checkpoint,
    read_metadata,
    shown,
    strip_prefixes,
)
from pipeline.files import write_whole
from pipeline.models import VideoModel, create_model, model_entry
from pipeline.published import published_weights

__all__ = [
    "PUBLISHED",
    "WeightsError",
    "head_keys",
    "load_weights",
    "read_facts",
    "recorded_facts",
    "save_weights",
    "trained_classes",
    "weights_digest",
]


PUBLISHED = "published"

_CONVERTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_LISTED = 8


def save_weights(model: VideoModel, path: Path, facts: Mapping[str, object]) -> None:
    """Write a network as safetensors with its name, heads and some facts beside.

    The file appears whole or not at all, and equal networks and facts give equal bytes.

    Args:
        model: the network.
        path: the file; its folder is made.
        facts: what else to keep with it, plain JSON.
    """
    metadata = {"model": model.name, "heads": json.dumps(model.heads), "facts": json.dumps(facts)}
    tensors = {name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}
    content = _order_header(to_bytes(tensors, metadata))
    # Not safetensors' own `save_file`: its files are readable for their owner only.
    write_whole(path, content)


def read_facts(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: `model`, `heads` (JSON) and `facts` (JSON) if ours.

    Raises:
        WeightsError: the file is missing or is no safetensors file.
    """
    return read_metadata(path)


def recorded_facts(path: str | Path) -> dict[str, Any] | None:
    """What `save_weights` was told of a teacher's weights; None where it did not write them.

    Args:
        path: `published`, or a file.
    """
    if str(path) == PUBLISHED:
        return None
    try:
        metadata = read_facts(Path(path))
        facts = json.loads(metadata.get("facts", "{}"))
    except (WeightsError, ValueError):  # no safetensors, or no facts of ours
        return None
    return facts if "heads" in metadata and isinstance(facts, dict) else None


def trained_classes(path: str | Path) -> str | None:
    """The digest of the class names that weights were trained for, as `teach --train` records it.

    Returns:
        `Samples.classes_sha256` of the training, or None where a file does not say, as those of
        others and those of before this was recorded.
    """
    digest = (recorded_facts(path) or {}).get("classes_sha256")
    return digest if isinstance(digest, str) else None


def load_weights(
    name: str, heads: Mapping[str, int], path: str | Path, *, replace_head: bool = False
) -> VideoModel:
    """Build a network and load its weights, in evaluation mode.

    The tensors may come in wrappers (see `read_checkpoint`), and under prefixes such as `module.`
    where all names have them. Those of float16, bfloat16 and float64 are converted to what the
    model holds, float32; nothing else is converted. So the digest, which is of what the model then
    holds, is the same whatever file the same numbers came in.

    Args:
        name: the registry's name.
        heads: number of classes by head.
        path: `published` for the library's own download, or a file (`./published` if it is called
            so): what `save_weights` wrote, other safetensors, or a state dict of `torch.save`.
        replace_head: leave the last linear layer as `create_model` made it, at random (seed torch
            before), and take all else from the file, whatever head it has, or none.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
        WeightsError: the file is missing or unreadable, was made for another architecture or other
            heads, or its tensors do not fit: missing, unexpected and misshapen ones are listed, as
            are those of another kind, or with values that are not finite. There are no published
            weights, or they could not be downloaded.
    """
    model_entry(name)  # before any download
    source, given, facts = _given(name, path)
    if facts.get("model", name) != name:
        raise WeightsError(
            f"{source} holds weights of {facts['model']!r}, but {name!r} is asked for"
        )
    model = create_model(name, heads)
    wanted: dict[str, Tensor] = model.net.state_dict()
    # Prefixes go on both sides: the registry may wrap a library's network, as may a zoo.
    ours, theirs = strip_prefixes(wanted), strip_prefixes(given)
    given = {ours + key.removeprefix(theirs): tensor for key, tensor in given.items()}
    if replace_head:
        given |= {key: wanted[key] for key in head_keys(model)}
    fitting = {
        key: given[key].to(tensor.dtype) if given[key].dtype in _CONVERTED else given[key]
        for key, tensor in wanted.items()
        if key in given
    }
    problems = _listed("missing: {}", [key for key in wanted if key not in given])
    problems += _listed("unexpected: {}", [key for key in given if key not in wanted])
    misfits = {key: _misfit(tensor, wanted[key]) for key, tensor in fitting.items()}
    problems += _listed("{}", [f"{key}: {what}" for key, what in misfits.items() if what])
    if not replace_head:
        problems += _about_the_head(model, given, facts, published=str(path) == PUBLISHED)
    if problems:
        raise WeightsError("\n  ".join([f"{source} does not fit {name}:", *problems]))
    model.net.load_state_dict(fitting)
    return model.eval()


def head_keys(model: VideoModel) -> set[str]:
    """The tensors of a network's last linear layer, by their names in `model.net`.

    They are those whose shapes depend on the number of classes: found by building the same network
    for one class more. Torch's random numbers stay where they were.
    """
    with torch.random.fork_rng(devices=[]):
        other = create_model(model.name, sum(model.heads.values()) + 1)
    shapes = {key: tensor.shape for key, tensor in other.net.state_dict().items()}
    return {key for key, tensor in model.net.state_dict().items() if tensor.shape != shapes[key]}


def _given(name: str, path: str | Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """What the weights are called in messages, their tensors, and their metadata."""
    if str(path) == PUBLISHED:
        return f"what was published for {name}", published_weights(name), {}
    return str(path), *read_checkpoint(Path(path))


def _misfit(given: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor cannot take the place of another, or None."""
    if given.shape != wanted.shape:
        return f"has shape {tuple(given.shape)}, the model wants {tuple(wanted.shape)}"
    if given.dtype != wanted.dtype or given.layout != wanted.layout or given.is_meta:
        return f"is {_kind(given)}, the model wants {_kind(wanted)}"
    finite = torch.isfinite(given)
    if not finite.all():
        return f"{int((~finite).sum())} of {given.numel()} values are not finite"
    return None


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    return f"{layout}{tensor.dtype}{' without values' if tensor.is_meta else ''}"


def _about_the_head(
    model: VideoModel, given: Mapping[str, Tensor], facts: Mapping[str, str], *, published: bool
) -> list[str]:
    """What is wrong with the head, and the way out if there is something."""
    asked, problems = json.dumps(model.heads), []
    # Heads that fit in shape may answer nonsense. As text, so that their order counts too.
    if facts.get("heads", asked) != asked:
        problems.append(f"heads: has {shown([facts['heads']])}, asked for is {asked}")
    if published and len(model.heads) > 1:
        problems.append(f"heads: published weights have one, asked for is {asked}")
    wanted = model.net.state_dict()
    misshapen = [key for key in wanted if key not in given or given[key].shape != wanted[key].shape]
    head = head_keys(model) if misshapen or problems else set()
    if problems or (misshapen and head.issuperset(misshapen)):
        problems.append(
            f"only the head does not fit ({shown(sorted(head))}): `new_head: true` in the "
            "teacher's section of the config puts a new one in its place, for `dualkd teach "
            "--train` to train"
        )
    return problems


def _listed(line: str, things: list[str]) -> list[str]:
    """One line for each of the first few, and one that says how many there are."""
    lines = [line.format(shown([thing])) for thing in things[:_MOST_LISTED]]
    if len(things) > _MOST_LISTED:
        rest = f"and {len(things) - _MOST_LISTED} more, {len(things)} in all"
        lines.append(line.format(rest))
    return lines


def weights_digest(module: nn.Module) -> str:
    """Sha256 over names, dtypes, shapes and bytes of all tensors, in the order of their names.

    It depends on the weights alone, not on the file that they came in.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.cpu().numpy()
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())  # in C order, whatever the strides
    return digest.hexdigest()


def _order_header(content: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes metadata at random.

    The file is the header's length (8 bytes, little-endian), the header (JSON, padded to a multiple
    of 8 bytes) and the tensors, whose offsets count from the header's end.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[start:]
