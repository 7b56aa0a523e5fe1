"""Weights files: read by hand, by another process, half-written, wrong; and the digests."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as plain_save_file
from torch import Tensor, nn

from pipeline.models import VideoModel, create_model
from pipeline.weights import (
    WeightsError,
    load_weights,
    read_facts,
    save_weights,
    weights_digest,
)

NAME, HEADS = "pytorchvideo/x3d_nano", {"verb": 5, "noun": 3}
FACTS = {"seed": 7, "note": "größer"}
REPOSITORY = Path(__file__).parent.parent
NUMPY = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}

OTHER_PROCESS = f"""
import os, pathlib, signal, sys
from pipeline.weights import load_weights, save_weights, weights_digest
given, copy = map(pathlib.Path, sys.argv[1:])
model = load_weights({NAME!r}, {HEADS!r}, given)
print(weights_digest(model.net), flush=True)
save_weights(model, copy, {FACTS!r})
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
model.net.blocks[0].conv.conv_t.weight.data.zero_()
save_weights(model, copy, {{"seed": 8}})
"""


@pytest.fixture(scope="module")
def model() -> VideoModel:
    """A network whose buffers are not all at their defaults; not to be changed."""
    torch.manual_seed(0)
    model = create_model(NAME, HEADS)
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 40, 40))  # in training mode: moves the running means
    return model


@pytest.fixture
def path(model: VideoModel, tmp_path: Path) -> Path:
    """Its weights file."""
    path = tmp_path / "weights" / "nano.safetensors"
    save_weights(model, path, FACTS)
    return path


class Run(NamedTuple):
    """What another process did before it was killed in the middle of writing."""

    digest: str
    copy: Path


@pytest.fixture(scope="module")
def other_process(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Load a file, print its digest, save a copy, be killed while overwriting the copy."""
    folder = tmp_path_factory.mktemp("other")
    given, copy = folder / "given.safetensors", folder / "copy.safetensors"
    save_weights(model, given, FACTS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, given, copy],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Run(done.stdout.strip(), copy)


def read_by_hand(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays of a safetensors file, by its specification."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__")
    arrays = {}
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        arrays[key] = np.frombuffer(data[start:stop], NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return metadata, arrays


def numbers(module: nn.Module) -> dict[str, bytes]:
    """The bytes of every tensor of a module."""
    return {key: tensor.numpy().tobytes() for key, tensor in module.state_dict().items()}


# ---- the file


def test_the_file_holds_every_tensor_bit_by_bit(model: VideoModel, path: Path) -> None:
    metadata, arrays = read_by_hand(path)
    assert {key: array.tobytes() for key, array in arrays.items()} == numbers(model.net)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.net.state_dict().items()}
    assert {key: array.shape for key, array in arrays.items()} == shapes
    assert metadata["model"] == NAME
    assert json.loads(metadata["heads"]) == HEADS
    assert json.loads(metadata["facts"]) == FACTS
    assert read_facts(path) == metadata
    assert load_file(path).keys() == arrays.keys()  # the library finds it sound too


def test_loading_gives_the_same_network_ready_to_answer(model: VideoModel, path: Path) -> None:
    loaded = load_weights(NAME, HEADS, path)
    assert numbers(loaded.net) == numbers(model.net)
    assert not any(module.training for module in loaded.modules())
    path.unlink()  # the tensors are not views of the file
    assert weights_digest(loaded.net) == weights_digest(model.net)


def test_another_process_reads_and_writes_the_same_bytes(
    model: VideoModel, path: Path, other_process: Run
) -> None:
    assert other_process.digest == weights_digest(model.net)
    assert other_process.copy.read_bytes() == path.read_bytes()


def test_a_kill_while_writing_leaves_the_old_file(model: VideoModel, other_process: Run) -> None:
    loaded = load_weights(NAME, HEADS, other_process.copy)
    assert numbers(loaded.net) == numbers(model.net)
    remains = other_process.copy.parent / f".{other_process.copy.name}.partial"
    assert remains.exists()  # else the process was not killed in the middle
    save_weights(model, other_process.copy, FACTS)
    assert not remains.exists()


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(
    model: VideoModel, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = path.read_bytes()

    def fail(partial: Path, *_: object) -> None:
        with partial.open("wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(OSError, match="no space left"):
            save_weights(model, path, {"seed": 8})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(
    model: VideoModel, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        save_weights(model, tmp_path / "nano.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "nano.safetensors").stat().st_mode & 0o777 == mode


def test_a_network_in_channels_last_gives_the_same_file(model: VideoModel, path: Path) -> None:
    turned = create_model(NAME, HEADS)
    turned.load_state_dict(model.state_dict())
    turned.to(memory_format=torch.channels_last_3d)
    assert not turned.net.blocks[0].conv.conv_t.weight.is_contiguous()
    other = path.with_name("turned.safetensors")
    save_weights(turned, other, FACTS)
    assert other.read_bytes() == path.read_bytes()


# ---- the digest


class Tiny(nn.Module):
    """Three tensors with known values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.5, -2.0]]))
        self.bias = nn.Parameter(torch.tensor([0.25]))
        self.register_buffer("count", torch.tensor(3))


class TinyReversed(nn.Module):
    """The same, registered in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(3))
        self.bias = nn.Parameter(torch.tensor([0.25]))
        self.weight = nn.Parameter(torch.tensor([[1.5, -2.0]]))


def test_the_digest_by_hand() -> None:
    spelled = b"bias|<f4|(1,)|" + struct.pack("<f", 0.25)
    spelled += b"count|<i8|()|" + struct.pack("<q", 3)
    spelled += b"weight|<f4|(1, 2)|" + struct.pack("<2f", 1.5, -2.0)
    assert weights_digest(Tiny()) == hashlib.sha256(spelled).hexdigest()
    # Digests stand in caches: a change of the recipe would refuse every cache that there is.
    assert weights_digest(Tiny()) == (
        "a1757f66a463b5a9e977a06158055567bb7b5f40be567356466ba2f3f58e511e"
    )


def test_the_digest_depends_on_the_weights_alone(model: VideoModel, path: Path) -> None:
    assert weights_digest(TinyReversed()) == weights_digest(Tiny())
    other = path.with_name("other.safetensors")
    save_weights(model, other, {"seed": 8, "made": "elsewhere"})
    assert other.read_bytes() != path.read_bytes()
    loaded = [load_weights(NAME, HEADS, each) for each in (path, other)]
    loaded[1].to(memory_format=torch.channels_last_3d).train()
    digests = {weights_digest(each.net) for each in (model, *loaded)}
    assert len(digests) == 1


@pytest.mark.parametrize("key", ["weight", "bias", "count"])
def test_one_changed_value_changes_the_digest(key: str) -> None:
    changed = Tiny()
    tensor = changed.state_dict()[key].view(-1)  # shares the module's memory
    if key == "count":
        tensor += 1
    else:
        tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(torch.inf))
    assert weights_digest(changed) != weights_digest(Tiny())


def test_name_shape_and_dtype_count_too() -> None:
    renamed, reshaped, retyped = Tiny(), Tiny(), Tiny()
    renamed.shift = renamed.bias
    del renamed.bias
    reshaped.weight = nn.Parameter(torch.tensor([[1.5], [-2.0]]))
    retyped.count = torch.tensor(3).view(torch.float64)  # the same bytes
    scalar = Tiny()
    scalar.bias = nn.Parameter(torch.tensor(0.25))
    digests = [weights_digest(each) for each in (Tiny(), renamed, reshaped, retyped, scalar)]
    assert len(set(digests)) == len(digests)


# ---- what cannot be loaded


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    for absent in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="dualkd teach --train") as caught:
            load_weights(NAME, HEADS, absent)
        assert str(absent) in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "half"])
def test_a_file_that_is_no_safetensors_file_is_named(path: Path, kind: str) -> None:
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello " * 99, "half": content[: -len(content) // 2]}[kind]
    )
    with pytest.raises(WeightsError, match="not a safetensors file") as caught:
        load_weights(NAME, HEADS, path)
    assert str(path) in str(caught.value)


class Bomb:
    """Its unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.folder,)


def test_nothing_is_unpickled(path: Path, tmp_path: Path) -> None:
    for write in (torch.save, lambda thing, to: to.write_bytes(pickle.dumps(thing))):
        write(Bomb(tmp_path / "burst"), path)
        with pytest.raises(WeightsError, match="not a safetensors file"):
            load_weights(NAME, HEADS, path)
    assert not (tmp_path / "burst").exists()


def test_weights_of_another_architecture_are_refused_by_name(path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{NAME!r}, but 'pytorchvideo/x3d_tiny'") as caught:
        load_weights("pytorchvideo/x3d_tiny", HEADS, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("heads", [{"noun": 3, "verb": 5}, {"action": 8}, {"verb": 5, "noun": 4}])
def test_weights_of_other_heads_are_refused(path: Path, heads: dict[str, int]) -> None:
    # The first two fit in shape: loaded, they would answer nonsense.
    with pytest.raises(WeightsError, match="heads: has") as caught:
        load_weights(NAME, heads, path)
    assert json.dumps(HEADS) in str(caught.value)
    assert json.dumps(heads) in str(caught.value)


def foreign(model: VideoModel) -> dict[str, Tensor]:
    """A state dict to change and save as somebody else would, without metadata."""
    return {key: tensor.clone() for key, tensor in model.net.state_dict().items()}


def test_a_foreign_file_that_fits_is_loaded(model: VideoModel, tmp_path: Path) -> None:
    plain_save_file(foreign(model), tmp_path / "foreign.safetensors")
    loaded = load_weights(NAME, HEADS, tmp_path / "foreign.safetensors")
    assert weights_digest(loaded.net) == weights_digest(model.net)


def test_all_that_does_not_fit_is_listed_in_one_message(model: VideoModel, tmp_path: Path) -> None:
    tensors = foreign(model)
    del tensors["blocks.0.conv.conv_t.weight"], tensors["blocks.0.norm.bias"]
    tensors |= {"ema.decay": torch.ones(1), "step": torch.ones(())}
    tensors["blocks.5.proj.weight"] = torch.zeros(400, 256)
    path = tmp_path / "foreign.safetensors"
    plain_save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(NAME, HEADS, path)
    first, *problems = str(caught.value).splitlines()
    assert str(path) in first
    assert NAME in first
    assert sorted(problem.strip() for problem in problems) == [
        "blocks.5.proj.weight: has shape (400, 256), the model wants (8, 256)",
        "missing: blocks.0.conv.conv_t.weight",
        "missing: blocks.0.norm.bias",
        "unexpected: ema.decay",
        "unexpected: step",
    ]
