"""A network as ONNX and by `torch.export`: nothing but the network, and what a clip is beside it.

What is written takes clips (batch, 3, frames, size, size) float32, as `pipeline.views.normalise`
makes them, and gives logits (batch, classes of all heads side by side), for a batch of any size.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline.files import write_whole
from pipeline.model_interface import VideoModel
from pipeline.onnx_files import INPUT, OUTPUT, write_onnx

OPSET = 23  # the newest that torch's exporter translates to by itself
ABOUT = "about.json"  # the extra file of what `torch.export` writes


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
        "input": "float32 (batch, 3, frames, size, size), RGB, (value / 255 - mean) / std; frames "
        "are stride / 30 s apart; of a video the central square, of it the middle test_share, "
        "resized bilinearly without antialiasing",
        "precision": "fp32",
        **facts,
    }


def traced(model: VideoModel) -> ExportedProgram:
    """The network in evaluation mode as a program for batches of any size."""
    clip = model.clip
    # Two clips: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, clip.frames, clip.size, clip.size)
    with quiet():
        return torch.export.export(
            model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )


def export_program(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write what `torch.export.load` reads; its extra file `about.json` is `about`."""
    content = io.BytesIO()
    example, program.example_inputs = program.example_inputs, None  # megabytes of zeros
    try:
        with quiet():
            torch.export.save(program, content, extra_files={ABOUT: json.dumps(about)})
    finally:
        program.example_inputs = example
    write_whole(path, content.getbuffer())


def export_onnx(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write ONNX; each entry of `about` is a metadata property of it, as JSON."""
    with quiet():
        made = torch.onnx.export(
            program,
            program.example_inputs[0],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),  # so that the axis is called so
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    if made is None:
        raise AssertionError("torch.onnx.export gave nothing")
    write_onnx(made.model_proto, path, about)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell much that concerns nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
