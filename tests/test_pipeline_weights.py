"""Weights files: read by hand, by another process, half-written, wrong; and the digests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as plain_save_file
from torch import Tensor, nn

from pipeline.checkpoints import read_checkpoint
from pipeline.models import VideoModel, create_model
from pipeline.weights import (
    WeightsError,
    head_keys,
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


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(
    model: VideoModel, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
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
    absent = tmp_path / "absent.safetensors"
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


def test_long_lists_are_cut_and_counted(model: VideoModel, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    plain_save_file({f"layer.{n}\n": torch.ones(1) for n in range(1000)}, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(NAME, HEADS, path)
    lines = str(caught.value).splitlines()
    assert f"  missing: and {len(model.net.state_dict()) - 8} more, " in "\n".join(lines)
    assert "  unexpected: and 992 more, 1000 in all" in lines
    assert len(lines) == 1 + 9 + 9


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_that_are_not_finite_are_refused(
    model: VideoModel, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensors = foreign(model)
    tensors["blocks.0.norm.bias"] = tensors["blocks.0.norm.bias"].to(dtype)
    tensors["blocks.0.norm.bias"][1:3] = value
    plain_save_file(tensors, tmp_path / "burnt.safetensors")
    with pytest.raises(WeightsError, match=r"norm\.bias: 2 of 8 values are not finite"):
        load_weights(NAME, HEADS, tmp_path / "burnt.safetensors")


def test_values_beyond_float32_are_refused(model: VideoModel, tmp_path: Path) -> None:
    tensors = foreign(model)
    tensors["blocks.0.norm.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    plain_save_file(tensors, tmp_path / "huge.safetensors")
    with pytest.raises(WeightsError, match=r"norm\.bias: 8 of 8 values are not finite"):
        load_weights(NAME, HEADS, tmp_path / "huge.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor.to(torch.int8), "is torch.int8, the model wants torch.float32"),
        (lambda tensor: tensor.to(torch.complex64), "is torch.complex64"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
        (lambda tensor: tensor.to_sparse(), "is torch.sparse_coo torch.float32"),
        (lambda tensor: tensor.to("meta"), "is torch.float32 without values"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    model: VideoModel, tmp_path: Path, change: Callable[[Tensor], Tensor], told: str
) -> None:
    tensors = foreign(model)
    tensors["blocks.0.norm.bias"] = change(tensors["blocks.0.norm.bias"])
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=f"blocks.0.norm.bias: {told}"):
        load_weights(NAME, HEADS, tmp_path / "odd.pth")


# ---- the same weights in other files


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names with a prefix, as DataParallel and torch.compile leave them."""
    return {prefix + key: tensor for key, tensor in state.items()}


FORMATS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "safetensors": plain_save_file,
    "torch": torch.save,
    "torch before 1.6": partial(torch.save, _use_new_zipfile_serialization=False),
    "pytorchvideo": lambda state, path: torch.save({"model_state": state, "epoch": 1}, path),
    "parallel": lambda state, path: torch.save({"state_dict": wrapped(state, "module.")}, path),
    "compiled": lambda state, path: plain_save_file(wrapped(state, "_orig_mod."), path),
    "both": lambda state, path: torch.save({"model": wrapped(state, "module._orig_mod.")}, path),
    "our VideoModel": lambda state, path: torch.save(wrapped(state, "net."), path),
    "double": lambda state, path: plain_save_file(
        {
            key: value.double() if value.is_floating_point() else value
            for key, value in state.items()
        },
        path,
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_digest_is_the_same_whatever_file_the_weights_came_in(
    model: VideoModel, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "weights"
    FORMATS[kind](foreign(model), path)
    loaded = load_weights(NAME, HEADS, path)
    assert numbers(loaded.net) == numbers(model.net)
    assert weights_digest(loaded.net) == weights_digest(model.net)
    assert not any(module.training for module in loaded.modules())


@pytest.mark.slow  # torch.compile takes its time to import
def test_what_the_wrappers_of_torch_write_is_read(model: VideoModel, tmp_path: Path) -> None:
    for number, network in enumerate((nn.DataParallel(model.net), torch.compile(model.net))):
        path = tmp_path / f"{number}.pth"
        torch.save(network.state_dict(), path)
        assert not read_checkpoint(path)[0].keys() & model.net.state_dict().keys()
        assert numbers(load_weights(NAME, HEADS, path).net) == numbers(model.net)


def test_a_prefix_that_only_some_names_have_is_not_stripped(
    model: VideoModel, tmp_path: Path
) -> None:
    tensors = wrapped(foreign(model), "module.")
    tensors["blocks.0.norm.bias"] = tensors.pop("module.blocks.0.norm.bias")
    torch.save(tensors, tmp_path / "mixed.pth")
    with pytest.raises(WeightsError, match=r"unexpected: module\.blocks"):
        load_weights(NAME, HEADS, tmp_path / "mixed.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_of_the_same_values(
    model: VideoModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    halves = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in foreign(model).items()
    }
    as_saved, as_safe = tmp_path / "half.pth", tmp_path / "half.safetensors"
    torch.save(halves, as_saved)
    plain_save_file(halves, as_safe)
    floats = {
        key: value.float() if value.is_floating_point() else value for key, value in halves.items()
    }
    plain_save_file(floats, tmp_path / "float.safetensors")
    loaded = [load_weights(NAME, HEADS, path) for path in (as_saved, as_safe)]
    assert {tensor.dtype for tensor in loaded[0].parameters()} == {torch.float32}
    assert numbers(loaded[0].net) == numbers(loaded[1].net)
    assert numbers(loaded[0].net) == {key: v.numpy().tobytes() for key, v in floats.items()}
    digest = weights_digest(load_weights(NAME, HEADS, tmp_path / "float.safetensors").net)
    assert {weights_digest(each.net) for each in loaded} == {digest} != {weights_digest(model.net)}


# ---- the head


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (NAME, {"blocks.5.proj.weight", "blocks.5.proj.bias"}),
        ("torchvision/mvit_tiny", {"head.1.weight", "head.1.bias"}),
    ],
)
def test_the_head_is_the_last_linear_layer(name: str, keys: set[str]) -> None:
    model = create_model(name, {"verb": 3, "noun": 2})
    before = torch.get_rng_state()
    assert head_keys(model) == keys
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_of_another_size_is_refused_with_the_way_out(path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(NAME, {"action": 14}, path)
    message = str(caught.value)
    assert "blocks.5.proj.bias: has shape (8,), the model wants (14,)" in message
    assert "only the head does not fit (blocks.5.proj.bias, blocks.5.proj.weight)" in message
    assert "`new_head: true` in the teacher's section" in message


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone."""
    return {key: value for key, value in state.items() if not key.startswith("blocks.5.proj.")}


@pytest.mark.parametrize("heads", [{"action": 14}, {"action": 8}, {"noun": 3, "verb": 5}])
@pytest.mark.parametrize("kind", ["ours", "foreign", "headless"])
def test_a_new_head_is_new_and_all_else_is_the_files(
    model: VideoModel, path: Path, heads: dict[str, int], kind: str
) -> None:
    if kind != "ours":
        tensors = foreign(model)
        torch.save({"model": tensors if kind == "foreign" else without_head(tensors)}, path)
    torch.manual_seed(5)
    fresh = create_model(NAME, heads)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_weights(NAME, heads, path, replace_head=True)
    assert torch.equal(torch.rand(1), drawn)
    assert without_head(numbers(loaded.net)) == without_head(numbers(model.net))
    for part in ("weight", "bias"):
        key = f"blocks.5.proj.{part}"
        assert torch.equal(loaded.net.state_dict()[key], fresh.net.state_dict()[key])
    assert loaded.heads == heads


def test_a_new_head_excuses_nothing_else(model: VideoModel, tmp_path: Path) -> None:
    tensors = foreign(model)
    del tensors["blocks.0.norm.bias"]
    tensors |= {"step": torch.ones(()), "blocks.0.norm.weight": torch.ones(7)}
    torch.save(tensors, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(NAME, {"action": 14}, tmp_path / "foreign.pth", replace_head=True)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "blocks.0.norm.weight: has shape (7,), the model wants (8,)",
        "missing: blocks.0.norm.bias",
        "unexpected: step",
    ]
