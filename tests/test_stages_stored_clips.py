"""A student's clips in a cache as JPEG files: what stands there, who adds it, who reads it."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from numpy.typing import NDArray
from PIL import Image

from cache import (
    CacheError,
    Field,
    Selection,
    Status,
    describe,
    open_cache,
    pull_cache,
    push_cache,
    verify_cache,
)
from cache_making import contents
from chain_making import in_turn, options, write_config
from pipeline.config import Run
from pipeline.jpeg import frame_bytes
from pipeline.models import model_entry
from pipeline.samples import read_samples, samples_from_table
from stages import distill, plan, recompute, rows, stored_clips, student_training
from stages.extract import ExtractError, extract
from stages.feed import Feed, used_part

NANO, TINY = "pytorchvideo/x3d_nano", "pytorchvideo/x3d_tiny"
CLIPS = "clips: [pytorchvideo/x3d_nano]"
AS_JPEG = (CLIPS, f"{CLIPS}\n  clip_format: jpeg")
BOTH = f"clips: [{NANO}, {TINY}]"


def extracted(run: Run) -> Run:
    """The cache of a config, made in the place of the one that stands."""
    shutil.rmtree(run.cache_path)
    extract(run, options(run))
    return run


def with_jpeg() -> Run:
    return extracted(write_config(Path.cwd(), AS_JPEG))


def feed(run: Run, decoders: int = 0) -> Feed:
    cache = open_cache(run.cache_path, blocks=True)
    return Feed(run, cache, used_part(run, cache), torch.device("cpu"), decoders)


def raw_clips(run: Run) -> NDArray[np.uint8]:
    """(samples, views, T, H, W, 3): what a cache of raw clips holds, whose pixels are tested."""
    cache = open_cache(run.cache_path)
    samples, views = (grid.ravel() for grid in np.indices((cache.num_samples, cache.num_views)))
    clips = cache.read(samples, views, [f"clip/{NANO}"])[f"clip/{NANO}"]
    return clips.reshape(cache.num_samples, cache.num_views, *clips.shape[1:])


def psnr(clips: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((clips.astype(float) - others) ** 2)))


def test_each_frame_is_a_file_that_others_open(mini: Run) -> None:
    raw = raw_clips(mini)
    run, spec = with_jpeg(), model_entry(NANO).clip
    field = open_cache(run.cache_path).fields[f"clip/{NANO}"]
    assert field == Field(
        f"clip/{NANO}", ("frame", "jpeg"), (spec.frames, frame_bytes(spec.size)), "uint8"
    )
    stored = zarr.open_group(run.cache_path, mode="r")[f"clip/{NANO}"]
    assert isinstance(stored, zarr.Array)
    assert stored.metadata.to_dict()["dimension_names"] == ("sample", "view", "frame", "jpeg")
    files = np.asarray(stored[:14])
    opened = xarray.open_zarr(run.cache_path, group="clip/pytorchvideo", consolidated=False)
    np.testing.assert_array_equal(opened["x3d_nano"].values[:14], files)
    for sample, view, frame in ((0, 0, 0), (7, 1, 3), (13, 0, spec.frames - 1)):
        with Image.open(io.BytesIO(files[sample, view, frame].tobytes())) as image:
            assert image.format == "JPEG"
            assert psnr(np.asarray(image.convert("RGB")), raw[sample, view, frame]) > 30
    (shown,) = [it for name, it in describe(run.cache_path)["fields"].items() if "clip" in name]
    assert shown["dims"][2:] == ["frame", "jpeg"]


def test_students_train_on_what_others_would_see(mini: Run) -> None:
    """The same samples, views and order as with raw clips, and nearly the same pixels."""
    expected = [batch for epoch in (0, 1) for batch in feed(mini)(epoch)]
    run = with_jpeg()
    assert used_part(run, open_cache(run.cache_path)).valid.all()
    batches = [batch for epoch in (0, 1) for batch in feed(run)(epoch)]
    for batch, other in zip(batches, expected, strict=True):
        assert batch.names == other.names
        assert (batch.clips.shape, batch.clips.dtype) == (other.clips.shape, torch.uint8)
        assert psnr(batch.clips.numpy(), other.clips.numpy()) > 30
    threaded = [batch for epoch in (0, 1) for batch in feed(run, decoders=2)(epoch)]
    for batch, other in zip(batches, threaded, strict=True):
        assert batch.names == other.names
        assert torch.equal(batch.clips, other.clips)


def test_distill_says_what_it_trains_on(
    mini: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "run_side_by_side", in_turn)
    run = with_jpeg()
    distill.distill(run, distill.Options(run.cache_path, torch.device("cpu"), 0))
    assert "stored in outputs/mini/cache as JPEG" in " ".join(capfd.readouterr().err.split())
    assert '"clips": "jpeg"' in (run.outputs / "distill" / "distill.json").read_text()


def test_rows_come_out_again_and_failed_ones_are_zeros(mini: Run) -> None:
    sample = samples_from_table(open_cache(mini.cache_path).samples, "cache").row(4)
    (Path(mini.prepare.root) / sample.path).unlink()
    run = with_jpeg()
    again = recompute.Options(1000, 0, 0, 8, torch.device("cpu"))
    result = recompute.recompute(run, run.cache_path, again)
    assert result.findings == []
    assert result.fields[f"clip/{NANO}"].largest == 0
    cache = open_cache(run.cache_path)
    assert verify_cache(run.cache_path).ok
    assert (cache.status[4] == Status.UNREADABLE_VIDEO).all()
    assert not cache.read([4, 4], [0, 1])[f"clip/{NANO}"].any()
    assert cache.read([5], [0])[f"clip/{NANO}"].any()


def test_jpeg_clips_are_added_to_a_cache_of_raw_ones(
    mini: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing that stands is touched; each student keeps the format that its clips stand in."""
    before = contents(mini.cache_path, commits=True)
    run = write_config(Path.cwd(), (CLIPS, f"{BOTH}\n  clip_format: jpeg"))
    extract(run, options(run))
    after = contents(run.cache_path, commits=True)
    kept = {name: it for name, it in before.items() if not name.endswith(("zarr.json", "st.json"))}
    assert {name: after[name] for name in kept} == kept
    said = " ".join(capfd.readouterr().err.split())
    assert f"clip/{NANO} stays as it is (raw); extract.clip_format (jpeg) counts when" in said
    cache = open_cache(run.cache_path)
    assert cache.coverage == 1
    assert [stored_clips.stored_format(cache, name) for name in (NANO, TINY)] == ["raw", "jpeg"]
    xarray.open_zarr(run.cache_path, group="clip/pytorchvideo", consolidated=False)
    fields = dict(cache.fields)
    plain = write_config(Path.cwd(), (CLIPS, BOTH))
    extract(plain, options(plain, views=3))
    said = " ".join(capfd.readouterr().err.split())
    assert f"clip/{TINY} stays as it is (jpeg); extract.clip_format (raw) counts when" in said
    assert open_cache(run.cache_path).fields == fields
    again = recompute.Options(1000, 0, 0, 8, torch.device("cpu"))
    assert recompute.recompute(plain, run.cache_path, again).findings == []


def test_students_of_other_sizes_stand_side_by_side(mini: Run) -> None:
    """In one group xarray wants one size per dimension; the second student's get a name."""
    fields = stored_clips.clip_fields([NANO, TINY, "pytorchvideo/x3d_s"], {}, "jpeg")
    sizes: dict[str, int] = {}
    for field in fields:
        for dim, size in zip(field.dims, field.shape, strict=True):
            assert sizes.setdefault(dim, size) == size
    assert fields[2].dims == ("frame_x3d_s", "jpeg_x3d_s")
    assert fields[2].shape == (13, 14_336)
    standing = {field.name: field for field in fields}
    again = stored_clips.clip_fields(["pytorchvideo/x3d_s", NANO], standing, "raw")
    assert again == [fields[2], fields[0]]


def test_clips_of_another_size_are_not_used(mini: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = next(iter(feed(mini)(0)))
    cache, spec = open_cache(mini.cache_path), model_entry(NANO).clip
    entry = model_entry(NANO)
    larger = replace(entry, clip=replace(spec, size=64))
    monkeypatch.setattr(stored_clips, "model_entry", lambda _name: larger)
    what = (
        rf"clip/{NANO} holds uint8 of {spec.frames} × {spec.size} × {spec.size} × 3, and a clip of "
        rf"{NANO} is uint8 of {spec.frames} × 64 × 64 × 3, or as JPEG {spec.frames} × 2560"
    )
    assert distill._clip_source(mini, cache) == (
        f"decoded from the videos as they are needed: {what}"
    )
    made = feed(mini)
    assert not made.stored
    batch = next(iter(made(0)))
    assert torch.equal(batch.clips, expected.clips)  # from the videos
    with pytest.raises(ExtractError, match=f"{what}. Leave it out of extract.clips, give another"):
        extract(mini, options(mini))
    with pytest.raises(recompute.RecomputeError, match=what):
        recompute.recompute(
            mini, mini.cache_path, recompute.Options(1, 0, 0, 8, torch.device("cpu"))
        )
    monkeypatch.setattr(rows, "model_entry", lambda _name: larger)
    extract(mini, options(mini, replace=True))  # moves it aside
    assert stored_clips.stored_format(open_cache(mini.cache_path), NANO) == "raw"


def test_clips_that_were_not_pulled_are_told_with_the_command(
    mini: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push_cache(mini.cache_path, str(tmp_path / "shelf"), author="ada", about=lambda *_: {})
    copy = tmp_path / "copy"
    pull_cache(str(tmp_path / "shelf"), copy, Selection(fields=("vit", "cnn", "residual")))
    cache = open_cache(copy)
    assert repr(cache) == f"TeacherCache({str(copy)!r}: 14 samples, 2 views, pulled in part)"
    assert cache.origin
    why = (
        f"clip/{NANO} is not here, it was pulled in part. `dualkd-cache pull {cache.origin.url} "
        f"{copy} --fields clip/{NANO}` fetches it, if it is there"
    )
    assert distill._clip_source(mini, cache) == f"decoded from the videos as they are needed: {why}"
    job: Any = SimpleNamespace(run=mini, cache=cache, name="student")
    past: Any = SimpleNamespace(records=[{"epoch": 0, "waited": 0.5}])
    made: Any = SimpleNamespace(stored=False)
    student_training._tell_waiting(job, past, made)
    assert f"they are decoded from the videos: {why}" in " ".join(capfd.readouterr().err.split())


def test_waiting_for_clips_from_a_url_asks_for_no_disk(
    mini: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{Path(mini.cache_path).absolute()}"
    cache = open_cache(url, blocks=True)
    job: Any = SimpleNamespace(run=mini, cache=cache, name="student")
    past: Any = SimpleNamespace(records=[{"epoch": 0, "waited": 0.5}])
    student_training._tell_waiting(job, past, feed(mini))
    said = " ".join(capfd.readouterr().err.split())
    assert f"fetched from {url} when they are used: `dualkd-cache pull {url} FOLDER`" in said
    assert "disk" not in said


def test_a_file_that_is_not_whole_is_named_by_its_sample(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored_clips.encode_frames

    def cut(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
        files = whole(frames, most)
        files[2, 800:] = 0
        return files

    monkeypatch.setattr(stored_clips, "encode_frames", cut)
    run = with_jpeg()
    cache = open_cache(run.cache_path)
    name = cache.samples["sample_id"][3].as_py()
    where = rf"clip/{NANO} of sample {name}, view 0: frame 2 does not end as a JPEG file\. `dualkd"
    with pytest.raises(CacheError, match=where):
        next(stored_clips.read_stored(cache, NANO, [(np.array([3]), np.array([0]))]))
    for decoders in (0, 2):
        with pytest.raises(CacheError, match="frame 2 does not end as a JPEG file"):
            next(iter(feed(run, decoders)(0)))


def test_a_plan_counts_jpeg_clips(mini: Run) -> None:
    few = plan.Options(Path("nowhere"), 2, None, 0, 4, 0.01, torch.device("cpu"))
    facts = plan.plan(write_config(Path.cwd(), AS_JPEG), few)
    spec = model_entry(NANO).clip
    room = spec.frames * frame_bytes(spec.size)
    assert facts["bytes"]["by_field"][f"clip/{NANO}"] == facts["rows"] * room
    raw = plan.plan(mini, few)["bytes"]["by_field"][f"clip/{NANO}"]
    assert raw == facts["rows"] * spec.frames * spec.size**2 * 3
    assert len(read_samples(mini.samples_path)) == 28
