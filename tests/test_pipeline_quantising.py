"""Eight bits: the arithmetic of each layer is in integers, and its error is that of rounding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export_making import Tiny, tiny_clips
from pipeline.exporting import describe, export_onnx, traced
from pipeline.onnx_files import onnx_model, properties
from pipeline.quantising import quantise


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny network in float32 and in 8 bits."""
    folder = tmp_path_factory.mktemp("eight")
    model = Tiny(width=64)
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(traced(model), fp32, describe(model, {"cache": "12ab"}))
    taken = quantise(fp32, int8, (tiny_clips(2, seed).numpy() for seed in range(8)))
    assert taken == 16
    return fp32, int8


def test_weights_are_of_seven_bits_by_channel(pair: tuple[Path, Path]) -> None:
    graph = onnx.load(pair[1]).graph
    tensors = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = {name: values for name, values in tensors.items() if values.dtype == np.int8}
    kernel = next(values for values in weights.values() if values.ndim == 5)
    assert kernel.shape == (64, 3, 3, 3, 3)
    assert (np.abs(kernel.astype(int)).reshape(64, -1).max(axis=1) == 64).all()
    scales = [values for name, values in tensors.items() if "scale" in name and values.size == 64]
    assert len(scales) == len({scale.tobytes() for scale in scales})
    assert any(len(np.unique(scale)) > 32 for scale in scales)
    assert Counter(node.op_type for node in graph.node)["QuantizeLinear"] > 0


def test_answers_are_near_and_the_file_is_small(pair: tuple[Path, Path]) -> None:
    model = Tiny(width=64)
    clips = tiny_clips(16, seed=99)
    fp32, int8 = (onnx_model(path, model, threads=1)(clips).numpy() for path in pair)
    assert not np.array_equal(fp32, int8)
    # Steps of 1/64 of a weight's range and of 1/255 of an activation's are off by at most half;
    # sums of many average that, and logits beyond the calibrated range are cut off.
    error = np.sqrt(np.mean((int8 - fp32) ** 2) / np.mean(fp32**2))
    assert error < 2 * (1 / 64 + 1 / 255)
    assert pair[1].stat().st_size < 0.7 * pair[0].stat().st_size


def test_the_file_says_of_itself_what_the_other_does(pair: tuple[Path, Path]) -> None:
    fp32, int8 = (properties(path) for path in pair)
    assert int8 == fp32 | {"precision": "int8"}
