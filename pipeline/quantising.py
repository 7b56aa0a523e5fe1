"""An ONNX model in 8 bits: static quantisation by ONNX Runtime, its ranges measured on real clips.

Weights are int8 with one scale per output channel, of 7 bits: CPUs without VNNI add two products of
8 bits in 16 and would saturate, so that what is measured on one CPU would not hold on another.
Activations are uint8 between the least and the greatest value that the clips give. Only what has
weights to multiply is quantised, convolutions and linear layers; what lies between them (SiLU, the
squeeze and excitation's products, sums, norms) stays in float: it costs little and loses most.
docs/deployment.md has the other settings that were tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.exporting import quiet
from pipeline.onnx_files import INPUT, properties, write_onnx

METHOD = "Static, QDQ: weights int8 by channel (7 bits), activations uint8 by least and greatest"
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantise(path: Path, out: Path, clips: Iterable[NDArray[np.float32]]) -> int:
    """Write an ONNX model in 8 bits; it says of itself what the one in float32 does.

    Args:
        path: the model in float32, of `pipeline.exporting.export_onnx`.
        out: where to.
        clips: normalised ones, (B, 3, T, S, S) each, one after another: none is kept.

    Returns:
        How many clips there were.
    """
    reader = _Reader(clips)
    with TemporaryDirectory() as folder, quiet():
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "made.onnx")
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # Products of two activations, as of attention, stay in float. Outputs do not: without
            # a range for them ONNX Runtime 1.32 cannot run a linear layer of tokens by channel.
            extra_options={"MatMulConstBOnly": True},
        )
        proto = onnx.load(made)
    del proto.metadata_props[:]
    write_onnx(proto, out, properties(path) | {"precision": "int8"})
    return reader.taken


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands clips to ONNX Runtime."""

    def __init__(self, clips: Iterable[NDArray[np.float32]]) -> None:
        self._clips: Iterator[NDArray[np.float32]] = iter(clips)
        self.taken = 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, or None after the last."""
        batch = next(self._clips, None)
        if batch is None:
            return None
        self.taken += len(batch)
        return {INPUT: batch}
