"""Loading and saving of weights, and their digests. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn

from pipeline.models import VideoModel, create_model


class WeightsError(ValueError):
    """Weights cannot be used; the message names the file and what is wrong."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Not safetensors' own `save_file`: its files are readable for their owner only.
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_facts(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: `model`, `heads` (JSON) and `facts` (JSON) if ours.

    Raises:
        WeightsError: the file is missing or is no safetensors file.
    """
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}; `dualkd teach --train` makes a teacher's, `dualkd distill` a "
            "student's"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error


def load_weights(name: str, heads: Mapping[str, int], path: Path) -> VideoModel:
    """Build a network and load its weights, in evaluation mode.

    Raises:
        WeightsError: the file is missing or unreadable, was made for another architecture or other
            heads, or its tensors do not fit; missing, unexpected and misshapen ones are listed.
    """
    facts = read_facts(path)
    if facts.get("model", name) != name:
        raise WeightsError(f"{path} holds weights of {facts['model']!r}, but {name!r} is asked for")
    model = create_model(name, heads)
    given, wanted = load_file(path), model.net.state_dict()
    problems = []
    # As text, so that the order counts: two heads swapped may well fit, and answer nonsense.
    if facts.get("heads", json.dumps(model.heads)) != json.dumps(model.heads):
        problems.append(f"heads: has {facts['heads']}, asked for is {json.dumps(model.heads)}")
    problems += [f"missing: {key}" for key in wanted if key not in given]
    problems += [f"unexpected: {key}" for key in given if key not in wanted]
    problems += [
        f"{key}: has shape {tuple(given[key].shape)}, the model wants {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if problems:
        raise WeightsError("\n  ".join([f"{path} does not fit {name}:", *problems]))
    model.net.load_state_dict(given)
    return model.eval()


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
