"""Files of weights as others write them: wrapped, prefixed, halved, broken, hostile."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.checkpoints import WeightsError, read_checkpoint, read_metadata, shown, strip_prefixes

TENSORS = {"stem.weight": torch.tensor([[1.5, -2.0]]), "count": torch.tensor(3)}


def assert_same(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert given.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert given[key].dtype == tensor.dtype
        assert given[key].tolist() == tensor.tolist()


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- what is read


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"model_state": state, "epoch": 9, "optimizer_state": {"lr": 0.1}},
        lambda state: {"state_dict": OrderedDict(state), "arch": "slow", "best": None},
        lambda state: {"model": state, "cfg": "A: 1", "step": torch.tensor(1)},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state, "name": "x3d"}, "epoch": 1},
    ],
    ids=["plain", "ordered", "model_state", "state_dict", "model", "model_state_dict", "nested"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_state_dicts_in_the_wrappers_of_the_zoos(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    path = tmp_path / "zoo.pyth"
    torch.save(wrap(TENSORS), path, _use_new_zipfile_serialization=zipped)
    tensors, metadata = read_checkpoint(path)
    assert_same(tensors, TENSORS)
    assert metadata == {}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_the_content_says_what_a_file_is(tmp_path: Path, suffix: str) -> None:
    safe, saved = tmp_path / f"safe.{suffix}", tmp_path / f"saved.{suffix}"
    save_file(TENSORS, safe, {"note": "größer"})
    torch.save(TENSORS, saved)
    tensors, metadata = read_checkpoint(safe)
    assert_same(tensors, TENSORS)
    assert metadata == read_metadata(safe) == {"note": "größer"}
    assert_same(read_checkpoint(saved)[0], TENSORS)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_metadata(saved)


def test_a_link_is_read_like_its_file(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "blob")
    link = tmp_path / "x3d.pyth"
    link.symlink_to("blob")
    assert_same(read_checkpoint(link)[0], TENSORS)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a", "b.c"], ""),
        (["module.a", "module.b"], "module."),
        (["module.a", "b"], ""),
        (["module._orig_mod.a", "module._orig_mod.b"], "module._orig_mod."),
        (["_orig_mod.module.model.a"], "_orig_mod.module.model."),
        (["backbone.a", "backbone.b"], "backbone."),
        (["backbone.a", "cls_head.fc"], ""),
        (["model.a", "models.b"], ""),
        (["blocks.0", "blocks.1"], ""),
        ([], ""),
    ],
)
def test_a_prefix_is_one_that_all_names_have(names: list[str], prefix: str) -> None:
    assert strip_prefixes(dict.fromkeys(names)) == prefix


# ---- what is not


def broken_files() -> dict[str, bytes]:
    """Contents that no reader may take for weights."""
    return {
        "empty": b"",
        "short": b"PK",
        "text": b"hello " * 99,
        "page": b"<!DOCTYPE html><title>404</title>",
        "zip begun": b"PK\x03\x04" + b"x" * 99,
        "pickle begun": b"\x80\x02" + b"hello" * 9,
        "safetensors begun": struct.pack("<Q", 10**12) + b'{"a":',
        "safetensors of nothing": struct.pack("<Q", 2) + b"{}",
    }


@pytest.mark.parametrize("kind", broken_files())
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(broken_files()[kind])
    message = refusal(path)
    assert "not a safetensors file" in message or "holds no tensors" in message


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_files_cut_short_are_refused(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / "weights"
    tensors = {"weight": torch.arange(500.0)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "not a safetensors file" in refusal(path)


def test_a_file_cut_at_any_byte_or_with_a_flipped_one_never_escapes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        for spoilt in (
            content[:place],
            content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :],
        ):
            path.write_bytes(spoilt)
            with suppress(WeightsError):  # a flipped value in a tensor is just another value
                tensors, _ = read_checkpoint(path)
                assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert "a folder" in refusal(tmp_path)
    assert "dualkd teach --train" in refusal(tmp_path / "absent.pth")
    assert "weights: published" in refusal(tmp_path / "absent.pth")
    nowhere, round_about, fifo = (tmp_path / name for name in ("nowhere", "round", "fifo"))
    nowhere.symlink_to("absent")
    round_about.symlink_to("round")
    assert "a link that leads to no file" in refusal(nowhere)
    assert "a link that leads to no file" in refusal(round_about)
    os.mkfifo(fifo)
    assert "no regular file" in refusal(fifo)  # and does not wait for somebody to write


class Bomb:
    """Its unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_unpickled(tmp_path: Path, protocol: int) -> None:
    burst, path = tmp_path / "burst", tmp_path / "weights"
    for zipped in (True, False):
        content = {"state_dict": TENSORS, "extra": Bomb(burst)}
        with path.open("wb") as file:
            torch.save(
                content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol
            )
        refusal(path)
    path.write_bytes(pickle.dumps(Bomb(burst), protocol))
    refusal(path)
    assert not burst.exists()


@pytest.mark.parametrize(
    ("content", "needs"),
    [
        ({"model": TENSORS, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"model": TENSORS, "best": np.float64(1)}, "scalar"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_pickle_that_needs_more_says_how_to_convert_it(
    tmp_path: Path, content: Any, needs: str
) -> None:
    path = tmp_path / "training.pth"
    torch.save(content, path)
    message = refusal(path)
    assert needs in message
    assert "without running any code" in message
    assert "Ask its maker for the state dict alone" in message
    assert "add_safe_globals" not in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "it is empty"),
        ({"state_dict": {}}, "['state_dict'] holds no state dict: it is empty"),
        ([torch.ones(1)], "is a list, not a state dict"),
        (torch.ones(1), "is a Tensor, not a state dict"),
        ({"epoch": 3, "weights": TENSORS}, "not tensors are epoch, weights"),
        ({"model": TENSORS, "state_dict": TENSORS}, "several state dicts: state_dict, model"),
        ({"stem.weight": torch.ones(1), "epoch": 3}, "not tensors are epoch"),
        ({"model": {"model": {"model": {"model": {"model": TENSORS}}}}}, "not tensors are model"),
        ({str(n): n for n in range(50)}, "and 42 more (50 in all)"),
    ],
)
def test_a_file_without_one_state_dict_says_what_it_holds(
    tmp_path: Path, content: Any, told: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert told in refusal(path)


def test_names_in_messages_are_few_short_and_harmless() -> None:
    assert shown(["a", "b"]) == "a, b"
    assert shown(["a\x1b[2J\nb"]) == repr("a\x1b[2J\nb")
    assert shown(list("abcd"), most=2) == "a, b and 2 more (4 in all)"
    assert len(shown(["x" * 10_000])) == 120


def test_safetensors_whose_header_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lying.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 35)
    assert "not a safetensors file" in refusal(path)
