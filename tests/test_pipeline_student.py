"""Students out of files: what they answer, and what every other file is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from chain_making import CONFIG
from pipeline.class_names import ClassNamesError
from pipeline.devices import DeviceError
from pipeline.models import create_model
from pipeline.samples import Sample, build_samples, write_samples
from pipeline.student import StudentError, load_student
from pipeline.views import ClipSpec, normalise
from pipeline.weights import WeightsError, load_weights, save_weights
from student_making import CLIP, FRAMES, SIZE, about, matrix, write_onnx

NANO = "pytorchvideo/x3d_nano"
FACTS: dict[str, Any] = {"variant": "student", "dataset": "mini", "cache": "ab"}


def clips(count: int, frames: int = FRAMES, size: int = SIZE) -> np.ndarray[Any, Any]:
    shape = (count, frames, size, size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def save_nano(path: Path, facts: dict[str, Any], heads: dict[str, int] | None = None) -> Path:
    torch.manual_seed(0)
    save_weights(create_model(NANO, heads or {"action": 3}), path, facts)
    return path


def test_onnx_answers_by_head(tmp_path: Path) -> None:
    student = load_student(write_onnx(tmp_path / "a.onnx", about(verb=3, noun=4)))
    spec = ClipSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in CLIP.items()})  # type: ignore[arg-type]
    assert (student.model, student.clip) == ("test/matrix", spec)
    assert student.classes["noun"] == ["noun 0", "noun 1", "noun 2", "noun 3"]
    shown = clips(5)
    expected = normalise(torch.from_numpy(shown), spec).flatten(1).numpy() @ matrix(7)
    found = student.logits(shown)
    assert list(found) == ["verb", "noun"]
    np.testing.assert_allclose(np.concatenate(list(found.values()), axis=1), expected, atol=1e-5)


def test_a_saved_student_answers_as_its_network(tmp_path: Path) -> None:
    names = {"verb": ["take", "put"], "noun": ["cup", "pan", "egg"]}
    heads = {head: len(of) for head, of in names.items()}
    path = save_nano(tmp_path / "s.safetensors", {**FACTS, "classes": names}, heads)
    student, model = load_student(path, device="cpu"), load_weights(NANO, heads, path)
    assert student.classes == names
    shown = clips(2, model.clip.frames, model.clip.size)
    with torch.inference_mode():
        expected = model.split_heads(model(normalise(torch.from_numpy(shown), model.clip)))
    for head, logits in student.logits(shown).items():
        np.testing.assert_array_equal(logits, expected[head].numpy())


def test_a_folder_of_distill_means_the_weights_that_its_config_keeps(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    names = {"classes": {"action": ["a", "b", "c"]}}
    save_nano(tmp_path / "last.safetensors", FACTS | names)
    assert load_student(tmp_path, device="cpu").path == tmp_path / "last.safetensors"


def test_a_student_of_before_is_given_its_names(tmp_path: Path) -> None:
    path = save_nano(tmp_path / "s.safetensors", FACTS)
    with pytest.raises(StudentError, match=r"--classes outputs/mini/samples\.parquet"):
        load_student(path)
    text, as_json, table = (tmp_path / name for name in ("n.txt", "n.json", "n.parquet"))
    text.write_text("a\nb\nc\n")
    as_json.write_text(json.dumps({"action": ["a", "b", "c"]}))
    rows = [Sample(sample_id="x", path="x.mp4", split="test", labels={"action": 0})]
    write_samples(build_samples("mini", {"action": ["a", "b", "c"]}, rows), table)
    for names in (text, as_json, table):
        assert load_student(path, names=names, device="cpu").classes == {"action": ["a", "b", "c"]}
    text.write_text("a\nb\n")
    with pytest.raises(
        StudentError, match=r"n.txt has names for 2 classes of action, but .*s\.saf.* 3"
    ):
        load_student(path, names=text)
    as_json.write_text('"a"')
    with pytest.raises(ClassNamesError, match=r"n\.json: expected head → names"):
        load_student(path, names=as_json)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(ClassNamesError, match=r"--classes .*n\.txt cannot be read: 'utf-8'"):
        load_student(path, names=text)
    for name, what in (
        ("none.txt", "No such file or directory"),
        ("none.parquet", "No such file or directory"),
        (".", "Is a directory"),
        ("a" * 300, "File name too long"),
    ):
        message = f"--classes .* cannot be read: {what}; it takes a samples table"
        with pytest.raises(ClassNamesError, match=message):
            load_student(path, names=tmp_path / name)


@pytest.mark.parametrize("device", ["cuda:77", "foo", "meta", ""])
def test_a_device_that_cannot_be_used_is_named(tmp_path: Path, device: str) -> None:
    path = save_nano(tmp_path / "s.safetensors", {**FACTS, "classes": {"action": ["a", "b", "c"]}})
    with pytest.raises(DeviceError, match=f"--device '{device}' cannot be used: .*`cpu` needs no"):
        load_student(path, device=device)


def test_one_list_of_names_is_not_for_several_heads(tmp_path: Path) -> None:
    said = about(verb=2, noun=2)
    del said["classes"]
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(ClassNamesError, match="names for one head, the model has verb, noun"):
        load_student(
            write_onnx(tmp_path / "a.onnx", said | {"heads": {"verb": 2, "noun": 2}}), names=names
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": None}, "does not say its clip; it was made by another version"),
        ({"classes": None}, "does not say its classes"),
        ({"clip": CLIP | {"resize": "bicubic"}}, r"not known here: \['resize'\].*another version"),
        ({"clip": CLIP | {"frames": 0}}, "which is no clip"),
        ({"clip": CLIP | {"mean": 0.45}}, "which is no clip"),
        ({"clip": "4x16"}, "not known here: 4x16"),
        ({"heads": {"action": "three"}}, "expected numbers of classes"),
        ({"classes": {"action": ["a", "b"]}}, "names for 2 classes of action, but .* 3 classes"),
        ({"classes": ["a", "b", "c"]}, "expected names by head"),
    ],
)
def test_what_an_onnx_file_says_must_be_sound(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    said = {k: v for k, v in (about(action=3) | change).items() if v is not None}
    path = write_onnx(tmp_path / "a.onnx", said, outputs=3)
    with pytest.raises(StudentError, match=rf"a\.onnx.*{message}"):
        load_student(path)


def test_an_onnx_file_that_is_none_of_ours(tmp_path: Path) -> None:
    said = {"heads": about(action=3)["heads"]}
    write_onnx(tmp_path / "a.onnx", said)
    other = tmp_path / "b.onnx"
    other.write_bytes((tmp_path / "a.onnx").read_bytes().replace(b"heads", b"tails"))
    with pytest.raises(StudentError, match=r"b\.onnx is none of dualkd's exports.*dualkd export"):
        load_student(other)


def test_an_onnx_file_that_answers_something_else(tmp_path: Path) -> None:
    student = load_student(write_onnx(tmp_path / "a.onnx", about(action=3), outputs=4))
    with pytest.raises(StudentError, match=r"answers \(2, 4\) to 2 clips, but says that it has 3"):
        student.logits(clips(2))
    renamed = write_onnx(tmp_path / "b.onnx", about(action=3), takes="pixels")
    with pytest.raises(StudentError, match=r"takes \['pixels'\].*expected clips and logits"):
        load_student(renamed)


def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    said = about(action=3) | {"clip": CLIP | {"std": [1e-45, 1.0, 1.0], "mean": [0.0, 0.0, 0.0]}}
    student = load_student(write_onnx(tmp_path / "a.onnx", said))
    with np.errstate(all="ignore"), pytest.raises(StudentError, match="not finite"):
        student.logits(clips(1))


def test_damaged_and_newer_onnx_files(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "a.onnx", about(action=3))
    path.write_bytes(path.read_bytes()[:2000])
    newer = write_onnx(tmp_path / "b.onnx", about(action=3), ir_version=999)
    for one in (path, newer):
        with pytest.raises(StudentError, match=rf"{one.name} cannot be loaded by ONNX Runtime"):
            load_student(one)


def test_what_is_no_model(tmp_path: Path) -> None:
    """Each is told what it is, and where students are."""
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.mp4").write_text("hello, world")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "weights.pth").read_bytes()[:200])
    save_nano(tmp_path / "teacher.safetensors", {"seed": 0, "classes_sha256": "ab"})
    save_file({"a": np.zeros(2)}, tmp_path / "plain.safetensors")
    for folder in ("some.cache", "exports", "nothing"):
        (tmp_path / folder).mkdir()
    (tmp_path / "some.cache" / "zarr.json").write_text("{}")
    write_onnx(tmp_path / "exports" / "a.onnx", about(action=3))
    messages = {
        f"{'a' * 300}.onnx": "cannot read the model .*aaa.onnx: File name too long",
        "absent.onnx": "no model at .*absent.onnx; `dualkd export` writes one",
        "empty.onnx": "is empty",
        "text.mp4": r"is no model: neither ONNX.*begins with b'hello, w'",
        "weights.pth": "is an archive, as torch.save writes weights, but no student",
        "cut.pt2": "is damaged, or cut off",
        "teacher.safetensors": "but not of a student: of a teacher.*student.safetensors",
        "plain.safetensors": "do not say what they are of: not a student",
        "some.cache": "is a cache of teachers' outputs, not a model",
        "exports": "is a folder; name the model itself: a.onnx",
        "nothing": "is a folder without a model",
    }
    for name, message in messages.items():
        with pytest.raises(StudentError, match=f"{re.escape(str(tmp_path))}.*{message}|{message}"):
            load_student(tmp_path / name)


def test_a_damaged_saved_student(tmp_path: Path) -> None:
    path = save_nano(tmp_path / "s.safetensors", FACTS | {"classes": {"action": ["a", "b", "c"]}})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"s\.safetensors is not a safetensors file"):
        load_student(path)


def test_exported_students_run_on_the_cpu(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "a.onnx", about(action=3))
    with pytest.raises(StudentError, match="runs on the CPU; --device cuda is for saved"):
        load_student(path, device="cuda")
