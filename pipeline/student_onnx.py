"""A student out of an ONNX file, by ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.student import Student, StudentError, from_facts
from pipeline.views import normalise_array

_ERRORS_ONLY = 3  # of ONNX Runtime's log; what stops it is raised too


def load_onnx(path: Path, names: Path | None) -> Student:
    """Load what `dualkd export` wrote as ONNX, in float32 or in 8 bits.

    Raises:
        pipeline.student.StudentError: it is no ONNX file, or none of ours.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no common class
        raise StudentError(
            f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: damaged, cut off, or of a "
            f"newer version of ONNX? {str(error)[:300]}"
        ) from error
    puts = [[one.name for one in of] for of in (session.get_inputs(), session.get_outputs())]

    def answer(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            (logits,) = session.run(None, {"clips": normalise_array(clips, student.clip)})
        except Exception as error:
            raise StudentError(f"{path} cannot be run: {str(error)[:300]}") from error
        return np.asarray(logits, np.float32)

    facts = _properties(session.get_modelmeta().custom_metadata_map)
    student = from_facts(path, facts, names, answer)
    if puts != [["clips"], ["logits"]]:
        raise StudentError(
            f"{path} takes {puts[0]} and gives {puts[1]}, expected clips and logits: it was made "
            "by another version of dualkd, or changed"
        )
    return student


def _properties(written: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of an ONNX file; what is no JSON is of another program."""
    found = {}
    for name, value in written.items():
        try:
            found[name] = json.loads(value)
        except ValueError:
            continue
    return found
