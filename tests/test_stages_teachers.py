"""Teachers are for the classes that they were trained for, by their names, not by their number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chain_making
from pipeline.config import Run
from pipeline.models import create_model
from pipeline.samples import Samples, read_samples
from pipeline.weights import (
    WeightsError,
    load_weights,
    save_weights,
    trained_classes,
    weights_digest,
)
from stages.extract import extract
from stages.teachers import load_teachers

CPU = torch.device("cpu")


def record(run: Run, classes: dict[str, list[str]]) -> str:
    """The same CNN teacher with a record of its classes; returns the digest of its tensors."""
    table = read_samples(run.samples_path).table
    path = Path(run.teach.cnn.weights)
    model = load_weights(run.teach.cnn.model, {"action": 14}, path)
    digest = Samples("mini", classes, table).classes_sha256
    save_weights(model, path, {"epoch": 1, "classes_sha256": digest})
    return weights_digest(model.net)


def test_weights_of_the_same_classes_are_taken(mini: Run) -> None:
    samples = read_samples(mini.samples_path)
    assert trained_classes(mini.teach.cnn.weights) is None  # nothing recorded: as they are
    before = weights_digest(load_teachers(mini, samples, CPU).cnn)
    record(mini, samples.classes)
    assert trained_classes(mini.teach.cnn.weights) == samples.classes_sha256
    assert weights_digest(load_teachers(mini, samples, CPU).cnn) == before
    extract(mini, chain_making.options(mini))  # and the cache is the same


@pytest.mark.parametrize("change", ["order", "names"])
def test_weights_of_as_many_other_classes_are_refused(mini: Run, change: str) -> None:
    samples = read_samples(mini.samples_path)
    ours = samples.classes["action"]
    theirs = ours[::-1] if change == "order" else [f"{name} again" for name in ours]
    record(mini, {"action": theirs})
    other = Samples("mini", {"action": theirs}, samples.table).classes_sha256
    for call in (
        lambda: load_teachers(mini, samples, CPU),
        lambda: extract(mini, chain_making.options(mini)),
    ):
        with pytest.raises(WeightsError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(
            "configs/mini/cnn.safetensors (cnn) was trained for other classes"
        )
        assert f"the digest {other[:12]}" in message
        assert (
            f"(14 of action, {ours[0]!r} to {ours[-1]!r}) have {samples.classes_sha256[:12]}"
            in (message)
        )
        assert "`new_head: true`" in message


def test_an_added_teacher_of_other_classes_is_refused(mini: Run) -> None:
    record(mini, {"action": [str(number) for number in range(14)]})
    Path(mini.teach.cnn.weights).rename("other.safetensors")
    chain_making.write_teachers(mini)
    added = "{model: pytorchvideo/x3d_tiny, weights: other.safetensors}"
    change = ("max_failed_share: 0.5", f"max_failed_share: 0.5\n  added: {{third: {added}}}")
    run = chain_making.write_config(Path.cwd(), change)
    with pytest.raises(WeightsError, match=r"other\.safetensors \(third\) was trained for other"):
        extract(run, chain_making.options(run))


def test_what_records_no_classes(tmp_path: Path) -> None:
    model = create_model("pytorchvideo/x3d_nano", 3)
    torch.save(model.net.state_dict(), tmp_path / "theirs.pth")
    save_weights(model, tmp_path / "old.safetensors", {"epoch": 3})
    for path in ("published", tmp_path / "theirs.pth", tmp_path / "old.safetensors"):
        assert trained_classes(path) is None


def test_the_digest_of_class_names_is_of_their_order_and_heads() -> None:
    def digest(**classes: list[str]) -> str:
        return Samples("any", classes, None).classes_sha256

    # sha256 of {"action":["a","b"]}
    assert digest(action=["a", "b"]) == (
        "b58469b729138808ee89a70ec80b74e22b98faaa26bf4b11e4a3e065558a153c"
    )
    assert digest(verb=["a"], noun=["b"]) == digest(noun=["b"], verb=["a"])
    assert len({digest(action=["a", "b"]), digest(action=["b", "a"]), digest(verb=["a", "b"])}) == 3
