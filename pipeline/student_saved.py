"""A student out of the weights that `distill` saved, in its network of the registry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import find_device
from pipeline.student import Student, StudentError, class_names
from pipeline.views import normalise
from pipeline.weights import load_weights, read_facts


def load_saved(path: Path, names: Path | None, device: str) -> Student:
    """Load what `dualkd distill` wrote.

    Raises:
        pipeline.student.StudentError: it is no student, or does not say its classes.
        pipeline.devices.DeviceError: there is no such device.
        pipeline.weights.WeightsError: it does not fit its network.
    """
    metadata = read_facts(path)
    try:
        heads, facts = json.loads(metadata["heads"]), json.loads(metadata["facts"])
        model_name, is_student = metadata["model"], "variant" in facts
    except (KeyError, TypeError, ValueError) as error:
        raise StudentError(
            f"{path} holds weights that do not say what they are of: not a student. `dualkd "
            "distill` writes students, outputs/NAME/distill/student.safetensors"
        ) from error
    if not is_student:
        raise StudentError(
            f"{path} holds weights of {model_name}, but not of a student: of a teacher? `dualkd "
            "distill` writes students, outputs/NAME/distill/student.safetensors"
        )
    if names is None and "classes" not in facts:
        dataset = facts.get("dataset", "NAME")
        raise StudentError(
            f"{path} does not say the names of its classes: it was saved by a version before they "
            f"were. Give them: --classes outputs/{dataset}/samples.parquet, the table that "
            "`prepare` wrote, or a text file with one name a line"
        )
    classes = class_names(path, heads, facts.get("classes"), names)
    on = find_device(device)
    model = load_weights(model_name, heads, path).to(on)

    def answer(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: torch.Tensor = model(normalise(torch.from_numpy(clips).to(on), model.clip))
        return logits.float().cpu().numpy()

    return Student(path, model_name, model.clip, classes, answer)
