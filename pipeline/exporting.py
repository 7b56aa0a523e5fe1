"""A network in the formats that deployment uses: ONNX, `torch.export`, ONNX in 8 bits.

What is written takes clips (batch, 3, frames, size, size) float32, as `pipeline.views.normalise`
makes them, and gives logits (batch, classes of all heads side by side). Each file says beside its
weights what a clip is, so that nothing but it is needed.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.files import write_whole
from pipeline.models import VideoModel

OPSET = 21
INPUT, OUTPUT = "clips", "logits"


def describe(model: VideoModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself: how a clip is made of frames, and what the logits mean.

    Args:
        model: the network.
        facts: what is known of its making; with `classes` (head → names).
    """
    return {
        "model": model.name,
        "heads": model.heads,
        "clip": asdict(model.clip),
        "input": "float32 (batch, 3, frames, size, size), RGB, (value / 255 - mean) / std",
        **facts,
    }


def export_program(model: VideoModel, path: Path, about: Mapping[str, Any]) -> None:
    """Write what `torch.export.load` reads; its extra file `about.json` is `about`."""
    program = _program(model)
    with path.with_name(f".{path.name}.tmp").open("wb") as file:
        torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    path.with_name(f".{path.name}.tmp").replace(path)


def export_onnx(model: VideoModel, path: Path, about: Mapping[str, Any]) -> None:
    """Write ONNX with a dynamic batch; each entry of `about` is a property of it, as JSON."""
    with _quiet():
        made = torch.onnx.export(
            model.eval(),
            (_example(model),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    if made is None:
        raise AssertionError("torch.onnx.export gave nothing")
    write_onnx(made.model_proto, path, about)


def write_onnx(proto: onnx.ModelProto, path: Path, about: Mapping[str, Any]) -> None:
    """Write an ONNX model with what it says of itself; checked first."""
    for name, value in about.items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=name, value=json.dumps(value)))
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString())


def quantise(path: Path, out: Path, clips: Iterable[NDArray[np.float32]]) -> None:
    """Write an ONNX model in 8 bits: weights by channel, activations by what clips give.

    Static quantisation of ONNX Runtime (`quantize_static`, QDQ): the ranges of all activations are
    fixed by the calibration clips.

    Args:
        path: the model in float32.
        out: where to.
        clips: normalised ones of the training split, (batch, 3, frames, size, size) each.
    """
    prepared = out.with_name(f".{out.name}.prepared.onnx")
    quantised = out.with_name(f".{out.name}.quantised.onnx")
    try:
        with _quiet():
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantised,
                _Clips(clips),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        proto = onnx.load(quantised)
        del proto.metadata_props[:]
        write_onnx(proto, out, properties(path))
    finally:
        prepared.unlink(missing_ok=True)
        quantised.unlink(missing_ok=True)


def properties(path: Path) -> dict[str, Any]:
    """What an ONNX file says of itself; see `describe`."""
    props = onnx.load(path, load_external_data=False).metadata_props
    found: dict[str, Any] = {}
    for entry in props:
        try:
            found[entry.key] = json.loads(entry.value)
        except ValueError:  # of another program
            continue
    return found


class OnnxModel(VideoModel):
    """An ONNX file behind the interface of the network that it was made of; on CPUs."""

    def __init__(self, path: Path, model: VideoModel, threads: int = 0) -> None:
        """Load it.

        Args:
            path: the file.
            model: the network that it was made of.
            threads: 0 takes all cores.
        """
        super().__init__(model.name, model.family, model.clip, model.heads, torch.nn.Identity())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.register_parameter("device", torch.nn.Parameter(torch.zeros(0)))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Logits of all heads side by side, (B, ΣK)."""
        (logits,) = self.session.run([OUTPUT], {INPUT: clips.contiguous().numpy()})
        return torch.from_numpy(logits)


class _Clips(CalibrationDataReader):  # type: ignore[misc]
    """Hands calibration clips to ONNX Runtime."""

    def __init__(self, clips: Iterable[NDArray[np.float32]]) -> None:
        self._clips: Iterator[NDArray[np.float32]] = iter(clips)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch."""
        batch = next(self._clips, None)
        return None if batch is None else {INPUT: batch}


def _program(model: VideoModel) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model.eval(), (_example(model),), dynamic_shapes=shapes)


def _example(model: VideoModel) -> torch.Tensor:
    """Two clips: a batch of one would be taken for a constant."""
    return torch.zeros(2, 3, model.clip.frames, model.clip.size, model.clip.size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell much that concerns nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
