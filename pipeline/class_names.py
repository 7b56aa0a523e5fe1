"""The names of classes from a file: a text, JSON, or a samples table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.samples import SamplesError, read_samples

_TAKES = (
    "it takes a samples table (outputs/NAME/samples.parquet), JSON (head → names), or a text with "
    "one name a line"
)


class ClassNamesError(ValueError):
    """A file holds no class names; the message says what it may be."""


def read_class_names(path: Path, heads: Sequence[str]) -> dict[str, Any]:
    """Read the class names of each head, in the order of their numbers.

    Args:
        path: a samples table (`.parquet`); head → names as JSON (`.json`), or a list for a single
            head; or a text with one name a line, for a single head.
        heads: of the model.

    Raises:
        ClassNamesError: it is missing, or none of these, or has names for one head where there are
            several.
        pipeline.samples.SamplesError: it is no samples table.
    """
    try:
        if path.suffix == ".parquet" and path.is_file():
            return dict(read_samples(path).classes)
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except SamplesError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClassNamesError(f"--classes {path} cannot be read: {reason}; {_TAKES}") from error
    if isinstance(found, dict):
        return found
    if not isinstance(found, list):
        raise ClassNamesError(f"{path}: expected head → names, or a list of names")
    if len(heads) > 1:
        raise ClassNamesError(
            f"{path} has names for one head, the model has {', '.join(heads)}: give JSON, "
            f'{{"{heads[0]}": ["NAME", …], …}}, or a samples table'
        )
    return {heads[0]: found}
