"""A student out of a file of `torch.export`, on the CPU; torch alone is needed."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.student import Student, StudentError, from_facts
from pipeline.views import normalise

_ABOUT = "about.json"
_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # an environment variable of torch.load


def load_program(path: Path, names: Path | None) -> Student:
    """Load what `dualkd export` wrote as `.pt2`.

    Raises:
        pipeline.student.StudentError: it is another kind of archive, or damaged.
    """
    about = _about(path)

    def answer(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: torch.Tensor = module(normalise(torch.from_numpy(clips), student.clip))
        return logits.float().numpy()

    student = from_facts(path, about, names, answer)
    try:
        with _nothing_unpickled():
            module = torch.export.load(path).module()
    except Exception as error:  # whatever a damaged archive may bring about
        raise StudentError(
            f"{path} cannot be loaded by torch {torch.__version__}: damaged, or of another version "
            f"of torch? {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return student


def _about(path: Path) -> dict[str, Any]:
    """What the file says of itself.

    Raises:
        StudentError: it says nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == _ABOUT]
            about = json.loads(archive.read(found[0])) if found else None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise StudentError(f"{path} is damaged, or cut off ({error})") from error
    if not isinstance(about, dict):
        raise StudentError(
            f"{path} is an archive, as torch.save writes weights, but no student: `dualkd distill` "
            "writes those as .safetensors, `dualkd export` as .onnx and .pt2"
        )
    return about


@contextmanager
def _nothing_unpickled() -> Iterator[None]:
    """Have `torch.load`, which reads the weights, refuse all but tensors."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE]
        if before is not None:
            os.environ[_SAFE] = before
