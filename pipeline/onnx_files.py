"""ONNX files: written with what they say of themselves, counted, and run as the network they are.

Files are small here: no network of the registry comes near ONNX's 2 GB for one file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from pipeline.files import write_whole
from pipeline.model_interface import VideoModel

INPUT, OUTPUT = "clips", "logits"
_WEIGHTS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
}


def write_onnx(proto: onnx.ModelProto, path: Path, about: Mapping[str, Any]) -> None:
    """Write a model with what it says of itself; checked first.

    What exporters note beside it, as the lines of source that a node was made of, is left out: it
    names places on this machine.
    """
    graph = proto.graph
    for noted in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    for name, value in about.items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=name, value=json.dumps(value)))
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString(deterministic=True))


def properties(path: Path) -> dict[str, Any]:
    """What a file of ours says of itself; see `pipeline.exporting.describe`."""
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def count_operators(path: Path) -> dict[str, int]:
    """How many nodes of each kind of operator, by name."""
    return dict(sorted(Counter(node.op_type for node in onnx.load(path).graph.node).items()))


def count_weights(path: Path) -> int:
    """Numbers that a graph holds as weights, however often one tensor is used."""
    graph = onnx.load(path).graph
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type in _WEIGHTS
    }
    # By use: equal tensors, as two biases of zeros, are stored once.
    return sum(sizes.get(name, 0) for node in graph.node for name in node.input)


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A file ready to run on the CPU.

    Args:
        path: the file.
        threads: 0 takes all cores.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads would otherwise keep the cores busy for a while, and from everybody else.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class ExportedModel(VideoModel):
    """A file behind the interface of the network that it was made of; on the CPU."""

    def __init__(self, model: VideoModel, answer: Callable[[Tensor], Tensor]) -> None:
        """Take the network's place.

        Args:
            model: the network that the file was made of.
            answer: clips (B, 3, T, H, W) → logits (B, ΣK).
        """
        super().__init__(model.name, model.family, model.clip, model.heads, torch.nn.Identity())
        self.device_marker = torch.nn.Parameter(torch.zeros(0))  # where it is: on the CPU
        self._answer = answer

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of all heads side by side, (B, ΣK)."""
        return self._answer(clips)


def onnx_model(path: Path, model: VideoModel, threads: int = 0) -> ExportedModel:
    """An ONNX file as a network; see `open_session`."""
    session = open_session(path, threads)

    def answer(clips: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: clips.contiguous().numpy()})
        return torch.from_numpy(logits)

    return ExportedModel(model, answer)


def program_model(path: Path, model: VideoModel) -> ExportedModel:
    """What `torch.export` has written as a network."""
    program: Any = torch.export.load(path).module()
    # Its `__call__` checks the shape of clips; the module itself refuses `eval`.
    return ExportedModel(model, program.__call__)
