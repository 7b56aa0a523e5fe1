"""The energy of the cached residual: by class, over a clip, of large and of partial caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache import Field, TeacherCache, create_cache, open_cache
from cache.schema import Status
from pipeline.datasets import figures
from pipeline.samples import Sample, build_samples
from pipeline.views import ClipSpec
from stages import residual
from stages.residual import ClassEnergy, by_class, extremes, heat_clips, read_energies

CLASSES = ["bow", "clap", "wave"]
SHAPE = (3, 2, 2, 2)  # D, T', H', W'
SPEC = ClipSpec(frames=4, stride=6, size=48)
SAMPLES, VIEWS = 8, 2


def label(sample: int) -> int:
    return sample % len(CLASSES)


def values() -> np.ndarray:
    """(samples, views, *SHAPE); class 1 has the most energy, class 2 the least."""
    random = np.random.default_rng(0).normal(size=(SAMPLES, VIEWS, *SHAPE))
    size = np.array([1.0, 2.0, 0.5])[[label(sample) for sample in range(SAMPLES)]]
    return (random * size[:, None, None, None, None, None]).astype(np.float16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """Eight samples of three classes, the last one of another split; sample 3 cannot be read."""
    folder = tmp_path_factory.mktemp("residual")
    figures.render_one(folder, 0, "test", 0)
    (video,) = (path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))
    rows = [
        Sample(
            f"id-{sample}",
            video if label(sample) != 2 else "gone.mp4",
            "test" if sample == SAMPLES - 1 else "train",
            {"action": label(sample)},
        )
        for sample in range(SAMPLES)
    ]
    field = Field("residual", ("channel", "time", "height", "width"), SHAPE, "float16")
    with create_cache(
        folder / "cache",
        identity={"format_version": 1},
        provenance={},
        samples=build_samples("tiny", {"action": CLASSES}, rows).table,
        fields=[field],
        views=VIEWS,
        chunk_samples=4,
        projection={},
    ) as writer:
        for work in writer.pending():
            samples = np.asarray(writer.sample_range(work.chunk))
            shape = (len(samples), len(work.views))
            status = np.full(shape, Status.VALID, np.uint8)
            status[samples == 3] = Status.UNREADABLE_VIDEO
            own = values()[samples][:, list(work.views)]
            own[status != Status.VALID] = np.nan
            box = np.broadcast_to([0.7, 0.0, 0.0, 1.0, 1.0, 0.0], (*shape, 6))
            arrays = {"status": status, "residual": own, "views": np.array(box)}
            arrays["input_digest"] = np.zeros(shape, np.uint64)
            writer.write_chunk(work.chunk, arrays, views=work.views)
    return open_cache(folder / "cache", blocks=True)


def test_energy_is_the_mean_square_over_channels(cache: TeacherCache) -> None:
    found = read_energies(cache, ["train"])
    assert found is not None
    rows = [(sample, view) for view in range(VIEWS) for sample in (0, 1, 2, 4, 5, 6)]
    assert list(zip(found.rows, found.views, strict=True)) == rows
    assert found.whole == len(rows)
    for (sample, view), cells in zip(rows, found.cells, strict=True):
        for place in np.ndindex(*SHAPE[1:]):
            of_channels = [float(values()[sample, view, d, *place]) ** 2 for d in range(SHAPE[0])]
            assert cells[place] == pytest.approx(sum(of_channels) / SHAPE[0], rel=1e-12)


def test_the_energy_of_a_class_is_the_mean_over_its_videos(cache: TeacherCache) -> None:
    found = read_energies(cache, ["train"])
    assert found is not None
    squares = np.square(values().astype(np.float64)).mean(axis=(1, 2, 3, 4, 5))
    bow = squares[[0, 6]]  # sample 3 was not read
    energies = {one.name: one for one in by_class(found)}
    assert list(energies) == ["clap", "bow", "wave"]
    assert energies["bow"].mean == pytest.approx(bow.mean())
    # Of two values, the standard error of the mean is half of what lies between them.
    half = 1.96 * abs(bow[0] - bow[1]) / 2
    assert energies["bow"].interval == pytest.approx((max(0, bow.mean() - half), bow.mean() + half))
    assert energies["bow"].videos == 2


def test_of_a_large_cache_the_first_rows_are_read(
    cache: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual, "_MOST_ROWS", 4)
    found = read_energies(cache, ["train"])
    assert found is not None
    assert (found.rows.tolist(), found.views.tolist()) == ([0, 1, 2, 4], [0] * 4)
    assert found.whole == 12


def test_a_cache_without_residual_has_nothing_to_show(cache: TeacherCache, tmp_path: Path) -> None:
    assert read_energies(cache, ["validation"]) is None
    samples = cache.samples.slice(0, 1)
    with create_cache(
        tmp_path / "cache",
        identity={"format_version": 1},
        provenance={},
        samples=samples,
        fields=[Field("vit/pooled", ("channel",), (5,), "float16")],
        views=1,
        chunk_samples=4,
        projection={},
    ):
        pass
    assert read_energies(open_cache(tmp_path / "cache"), ["train"]) is None
    layout = cache.layout
    with create_cache(  # nothing of it made, or pulled
        tmp_path / "empty",
        identity={"format_version": 1},
        provenance={},
        samples=samples,
        fields=[layout.fields["residual"]],
        views=1,
        chunk_samples=4,
        projection={},
    ):
        pass
    assert read_energies(open_cache(tmp_path / "empty"), ["train"]) is None


def test_clips_of_three_classes_have_a_frame_for_each_step(cache: TeacherCache) -> None:
    found = read_energies(cache, ["train"])
    assert found is not None
    most, middle, least = heat_clips(found, cache, cache.path.parent, SPEC)
    assert [one.class_name for one in (most, middle, least)] == ["clap", "bow", "wave"]
    assert [one.sample_id for one in (most, middle, least)] == ["id-1", "id-0", "id-2"]
    np.testing.assert_array_equal(most.energy, found.cells[1])
    assert [len(most.frames), len(middle.frames)] == [2, 2]
    assert all(frame.startswith("data:image/webp;base64,") for frame in most.frames)
    assert least.frames == []
    assert least.error is not None
    assert "gone.mp4: no such file" in least.error


def test_of_many_classes_both_ends_are_shown() -> None:
    rows = [ClassEnergy(f"class {number}", 1.0, None, 1) for number in range(400)]
    shown, hidden = extremes(rows)
    assert [one.name for one in shown] == [f"class {n}" for n in (*range(15), *range(385, 400))]
    assert hidden == 370
    assert extremes(rows[:30]) == (rows[:30], 0)
