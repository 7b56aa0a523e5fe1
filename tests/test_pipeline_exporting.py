"""Files of networks answer as the networks do, for batches of any size, and say what they are."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export_making import CLIP, HEADS, Tiny, tiny_clips
from pipeline.exporting import OPSET, describe, export_onnx, export_program, traced
from pipeline.models import VideoModel, create_model
from pipeline.onnx_files import (
    count_operators,
    count_weights,
    onnx_model,
    program_model,
    properties,
)
from pipeline.quantising import quantise
from pipeline.training import predict

FACTS = {"classes": {"verb": ["a", "b", "c", "d", "ü"], "noun": ["x", "y", "z"]}, "cache": "12ab"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny network in both formats."""
    folder = tmp_path_factory.mktemp("tiny")
    model = Tiny()
    program = traced(model)
    export_onnx(program, folder / "tiny.onnx", describe(model, FACTS))
    export_program(program, folder / "tiny.pt2", describe(model, FACTS))
    return folder


@pytest.mark.parametrize("count", [1, 2, 5])
def test_files_answer_as_the_network_for_batches_of_any_size(files: Path, count: int) -> None:
    clips = tiny_clips(count)
    with torch.inference_mode():
        wanted = Tiny()(clips).numpy()
    assert np.abs(wanted).max() > 1
    session = ort.InferenceSession(files / "tiny.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"clips": clips.numpy()})
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)
    program = torch.export.load(files / "tiny.pt2").module()
    with torch.inference_mode():
        np.testing.assert_allclose(program(clips).numpy(), wanted, rtol=0, atol=1e-5)


def test_files_say_how_a_clip_is_made_and_what_answers_mean(files: Path) -> None:
    proto = onnx.load(files / "tiny.onnx")
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", OPSET)]
    told = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    extra = {"about.json": ""}
    torch.export.load(files / "tiny.pt2", extra_files=extra)
    assert json.loads(extra["about.json"]) == told == properties(files / "tiny.onnx")
    assert told["model"] == "tests/tiny"
    assert list(told["heads"].items()) == list(HEADS.items())
    assert told["classes"] == FACTS["classes"]
    assert told["clip"] == json.loads(json.dumps(asdict(CLIP)))
    assert (told["precision"], told["cache"]) == ("fp32", "12ab")
    assert "(value / 255 - mean) / std" in told["input"]
    (taken,) = proto.graph.input
    shape = [dim.dim_value or dim.dim_param for dim in taken.type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 4, 12, 12]


def test_files_name_no_place_of_this_machine(files: Path) -> None:
    assert str(Path(__file__).parents[1]).encode() not in (files / "tiny.onnx").read_bytes()


def test_the_same_network_gives_the_same_bytes(files: Path, tmp_path: Path) -> None:
    model = Tiny()
    export_onnx(traced(model), tmp_path / "again.onnx", describe(model, FACTS))
    assert (tmp_path / "again.onnx").read_bytes() == (files / "tiny.onnx").read_bytes()


def test_operators_and_weights_are_counted(files: Path) -> None:
    operators = count_operators(files / "tiny.onnx")
    assert operators["Conv"] == operators["Relu"] == 1
    assert "BatchNormalization" not in operators  # folded: scale and shift are the convolution's
    assert count_weights(files / "tiny.onnx") == 6 * 3 * 27 + 6 + 6 * 8 + 8


def test_files_stand_in_for_the_network(files: Path) -> None:
    model = Tiny()
    clips = torch.randint(256, (3, 4, 12, 12, 3), dtype=torch.uint8)
    wanted = predict(model, clips)
    for file in (
        onnx_model(files / "tiny.onnx", model, threads=1),
        program_model(files / "tiny.pt2", model),
    ):
        found = predict(file, clips)
        assert found.keys() == wanted.keys()
        for head in HEADS:
            torch.testing.assert_close(found[head], wanted[head], rtol=0, atol=1e-5)


def smaller(name: str) -> VideoModel:
    """A network of the registry with two heads that takes small clips, where it can."""
    torch.manual_seed(0)
    model = create_model(name, HEADS).eval()
    if "mvit" not in name:
        frames = 32 if "slowfast" in name else 8
        model.clip = replace(model.clip, frames=frames, size=64)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pytorchvideo/slowfast_r50", "timm/resnet18", "torchvision/mvit_tiny"]
)
def test_students_of_every_kind_can_be_exported(name: str, tmp_path: Path) -> None:
    model = smaller(name)
    clip = model.clip
    path = tmp_path / "student.onnx"
    export_onnx(traced(model), path, describe(model, {}))
    for count in (1, 3):
        clips = torch.randn(count, 3, clip.frames, clip.size, clip.size)
        with torch.inference_mode():
            wanted = model(clips)
            found = onnx_model(path, model, threads=1)(clips)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    quantise(path, tmp_path / "int8.onnx", [clips[:1].numpy(), clips[1:].numpy()])
    in_eight_bits = onnx_model(tmp_path / "int8.onnx", model, threads=1)(clips)
    assert (in_eight_bits - wanted).abs().max() < 0.25 * wanted.abs().max()
    assert not torch.equal(in_eight_bits, wanted)
