"""Tiny students as ONNX files, made without torch: one matrix between a clip and its logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FRAMES, SIZE = 4, 16
CLIP = {
    "frames": FRAMES,
    "stride": 3,
    "size": SIZE,
    "mean": [0.45, 0.4, 0.35],
    "std": [0.225, 0.2, 0.25],
    "test_share": 0.875,
}
NUMBERS = 3 * FRAMES * SIZE * SIZE  # of a clip


def matrix(classes: int) -> NDArray[np.float32]:
    """(NUMBERS, classes): the network."""
    return np.random.default_rng(0).normal(0, 0.01, (NUMBERS, classes)).astype(np.float32)


def about(**heads: int) -> dict[str, Any]:
    """What `dualkd export` would say of it."""
    return {
        "model": "test/matrix",
        "heads": heads,
        "classes": {head: [f"{head} {i}" for i in range(n)] for head, n in heads.items()},
        "clip": CLIP,
        "input": "float32 (batch, 3, frames, size, size)",
    }


def write_onnx(
    path: Path,
    said: Mapping[str, Any],
    *,
    outputs: int | None = None,
    ir_version: int = 10,
    takes: str = "clips",
) -> Path:
    """Write one.

    Args:
        path: where to.
        said: its metadata, by name.
        outputs: numbers that it answers, if not as many as it says.
        ir_version: of ONNX's format.
        takes: the name of its input.
    """
    count = sum(said["heads"].values()) if outputs is None else outputs
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [takes], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "matrix",
        [helper.make_tensor_value_info(takes, TensorProto.FLOAT, ["batch", 3, FRAMES, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count])],
        [numpy_helper.from_array(matrix(count), "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = ir_version
    for name, value in said.items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=name, value=json.dumps(value)))
    onnx.save(model, path)
    return path
