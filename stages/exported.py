"""What `dualkd export` measured of the student's files, as far as it has been run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = {"onnx": "ONNX, float32", "int8": "ONNX, 8 bits", "pt2": "torch.export, float32"}


@dataclass(frozen=True)
class ExportedFile:
    """One file of the student.

    Attributes:
        name: of the file.
        format: for people.
        bytes: its size.
        difference: the greatest one of a logit from PyTorch's; None where it was not compared.
        top1: None where it was not measured.
    """

    name: str
    format: str
    bytes: int
    difference: float | None
    top1: float | None


def exported_files(content: Mapping[str, Any] | None, student_sha256: str) -> list[ExportedFile]:
    """The files that `export/export.json` tells of; empty without any, or of another student.

    Args:
        content: of the file; None where nothing was exported.
        student_sha256: the weights of the student that the page is about.
    """
    if content is None or content.get("weights_sha256") != student_sha256:
        return []
    differences = content.get("parity", {}).get("max_difference", {})
    measured = content.get("quantisation", {})
    scores = {"onnx": measured.get("fp32", {}), "int8": measured.get("int8", {})}
    return [
        ExportedFile(
            name=name,
            format=FORMATS.get(file["format"], file["format"]),
            bytes=file["bytes"],
            difference=differences.get(file["format"]),
            top1=scores.get(file["format"], {}).get("top1"),
        )
        for name, file in content.get("files", {}).items()
    ]
