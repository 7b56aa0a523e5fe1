"""Stage two: the same clips, the same start, only the loss differs; views are replayed exactly."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cache import (
    CacheError,
    IdentityMismatch,
    Selection,
    Store,
    blocks,
    open_cache,
    pull_cache,
    push_cache,
)
from chain_making import in_turn, job, options, replace_column, write_config
from pipeline.config import Run
from pipeline.models import count_flops, count_parameters, create_model
from pipeline.objective import LABELS_ONLY, Batch, Method
from pipeline.samples import read_samples, samples_from_table
from pipeline.weights import load_weights
from stages import distill as stage
from stages.distill import Options, check_cache, with_weights
from stages.extract import extract
from stages.feed import Feed, teacher_fields, used_part
from stages.share import about_cache
from stages.student_training import train_student


def feed(
    run: Run, *, decoders: int = 0, stored: bool = True, epochs: tuple[int, ...] = (0, 1)
) -> list[Batch]:
    """The batches of some epochs with all terms on."""
    cache = open_cache(run.cache_path, blocks=True)
    made = Feed(run, cache, used_part(run, cache), torch.device("cpu"), decoders)
    made.stored = stored
    return [batch for epoch in epochs for batch in made(epoch)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.names == other.names
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(one.labels["action"], other.labels["action"])


def test_stored_clips_are_the_pixels_of_live_decoding(mini: Run) -> None:
    assert_same(feed(mini), feed(mini, stored=False))


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_data_workers(mini: Run) -> None:
    assert_same(feed(mini, stored=False, decoders=2, epochs=(1,)), feed(mini, epochs=(1,)))


def test_every_epoch_has_each_sample_once_and_all_views_take_turns(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    made = Feed(mini, cache, used_part(mini, cache), torch.device("cpu"), 0)
    seen: dict[str, set[bytes]] = {}
    for epoch in range(cache.num_views):
        names = []
        for batch in made(epoch):
            names += batch.names
            for name, clip in zip(batch.names, batch.clips, strict=True):
                seen.setdefault(name, set()).add(clip.numpy().tobytes())
        assert sorted(names) == sorted(cache.samples["sample_id"].to_pylist())
    assert all(len(clips) == cache.num_views for clips in seen.values())


def test_cached_rows_stand_beside_their_own_clips(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    ids = cache.samples["sample_id"].to_pylist()
    for batch in feed(mini):
        for place, name in enumerate(batch.names):
            rows = [ids.index(name)] * cache.num_views
            stored = cache.read(rows, range(cache.num_views))
            clips = stored[f"clip/{mini.distill.student}"]
            view = next(v for v in rows_of(clips, batch.clips[place].numpy()))
            pooled = stored["vit/pooled"][view].astype(np.float32)
            assert batch.teachers is not None
            assert batch.teachers.vit_pooled is not None
            np.testing.assert_array_equal(batch.teachers.vit_pooled[place].numpy(), pooled)
            assert batch.labels["action"][place] == cache.samples["label_action"][rows[0]].as_py()


def rows_of(clips: np.ndarray, clip: np.ndarray) -> list[int]:
    return [view for view in range(len(clips)) if np.array_equal(clips[view], clip)]


def test_only_the_fields_that_a_term_needs_are_read(mini: Run) -> None:
    samples = samples_from_table(open_cache(mini.cache_path).samples, "cache")
    weights = mini.distill.weights
    assert teacher_fields(mini, samples, Method(LABELS_ONLY)) == []
    only = {
        "kd": ["vit/logits/action", "cnn/logits/action"],
        "rkd": ["vit/pooled"],
        "sdd": ["residual"],
    }
    for name, fields in only.items():
        chosen = LABELS_ONLY.model_copy(update={name: getattr(weights, name)})
        assert teacher_fields(mini, samples, Method(chosen)) == fields


def test_the_student_is_the_plain_backbone(mini: Run) -> None:
    """The structure discrepancy branch is gone: same parameters, same FLOPs, same names."""
    train_student(job(mini))
    plain = create_model(mini.distill.student, 14)
    student = load_weights(mini.distill.student, {"action": 14}, Path("trained/last.safetensors"))
    assert count_parameters(student) == count_parameters(plain)
    assert count_flops(student) == count_flops(plain)
    assert student.state_dict().keys() == plain.state_dict().keys()


def test_each_epoch_is_told_and_what_is_odd_once(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_config(
        Path.cwd(),
        ("temperature: 2.0", "temperature: 2.0\n  validation: test"),
        ("train: *recipe\n  weights", "train: {<<: *recipe, epochs: 2, accumulate: 3}\n  weights"),
    )
    monkeypatch.setattr("stages.student_training._WAITED", -1.0)
    said: list[str] = []
    train_student(job(run), on_epoch=said.append)
    assert [line.partition(",")[0] for line in said] == ["epoch 1", "epoch 2"]
    for line in said:
        for part in ("loss", "top-1", "waited"):
            assert part in line
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("waited for clips for") == 1
    assert "a piece has 2 clips (batch_size 7, accumulate 3, 1 rank): it adds little" in told


def test_training_twice_gives_the_same_bytes(mini: Run) -> None:
    for out in ("one", "two"):
        train_student(job(mini, folder=out))
    one, two = (Path(f"{out}/last.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


def test_without_terms_the_student_is_the_baseline(mini: Run) -> None:
    """Same start, same clips, same dropout: the loss is the only difference between the two."""
    run = write_config(Path.cwd(), ("{kd: 1.0, sdd: 0.1, rkd: 0.1}", "{kd: 0, sdd: 0, rkd: 0}"))
    for variant in ("student", "baseline"):
        train_student(job(run, variant, variant))
    models = [
        load_weights(run.distill.student, {"action": 14}, Path(f"{name}/last.safetensors"))
        for name in ("student", "baseline")
    ]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_another_cache_is_refused_naming_what_differs(mini: Run) -> None:
    other = write_config(Path.cwd(), ("scale: [0.7, 1.0], span_sec", "scale: [0.5, 1.0], span_sec"))
    with pytest.raises(IdentityMismatch, match=r"views\.scale"):
        check_cache(other, open_cache(other.cache_path))


def test_missing_views_are_refused_with_the_command_that_makes_them(mini: Run) -> None:
    other = write_config(Path.cwd(), ("views: {count: 2", "views: {count: 3"))
    with pytest.raises(CacheError, match="dualkd-cache extract --dataset mini"):
        check_cache(other, open_cache(other.cache_path))


def test_samples_that_are_others_now_are_refused(mini: Run) -> None:
    label = read_samples(mini.samples_path).row(3).labels["action"]
    name = replace_column(mini, "label_action", 3, (label + 1) % 14)
    with pytest.raises(CacheError, match=f"sample {name} was recorded with label_action"):
        check_cache(mini, open_cache(mini.cache_path))
    mini.samples_path.unlink()  # a teammate's machine may have the cache only
    check_cache(mini, open_cache(mini.cache_path))


def test_a_split_that_is_not_cached_is_told(mini: Run) -> None:
    other = write_config(Path.cwd(), ("temperature: 2.0", "temperature: 2.0\n  splits: [test]"))
    with pytest.raises(CacheError, match="holds no samples of split test, only of train"):
        check_cache(other, open_cache(other.cache_path))


def test_a_part_of_the_cache_trains(mini: Run) -> None:
    """The first samples of the first views; the rest need not be there."""
    commits = mini.cache_path / "commits"
    (commits / "2.json").unlink()  # samples 10 to 13
    with pytest.raises(CacheError, match=r"distill\.views and distill\.fraction choose less"):
        check_cache(mini, open_cache(mini.cache_path))
    part = write_config(
        Path.cwd(), ("temperature: 2.0", "temperature: 2.0\n  fraction: 0.7\n  views: 1")
    )
    check_cache(part, open_cache(part.cache_path))
    cache = open_cache(part.cache_path)
    first = cache.samples["sample_id"].to_pylist()[:10]
    clips = cache.read(range(10), [0] * 10)[f"clip/{part.distill.student}"]
    for batch in feed(part):
        for name, clip in zip(batch.names, batch.clips.numpy(), strict=True):
            np.testing.assert_array_equal(clip, clips[first.index(name)])


@pytest.mark.slow
def test_both_students_side_by_side(mini: Run) -> None:
    stage.distill(mini, Options(mini.cache_path, torch.device("cpu"), 0))
    out = mini.outputs / "distill"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "baseline",
        "baseline.csv",
        "baseline.safetensors",
        "datw.csv",
        "datw_confidence.csv",
        "distill.json",
        "metrics.jsonl",
        "student",
        "student.csv",
        "student.safetensors",
    }
    train_student(job(mini))  # alone, in this process: the same student
    assert (out / "student.safetensors").read_bytes() == Path(
        "trained/last.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_killed_distill_leaves_no_process_behind(mini: Run) -> None:
    write_config(Path.cwd(), ("epochs: 1,", "epochs: 100000,"))
    program = "from stages.cli import main; main()"
    command = [sys.executable, "-c", program, "distill", "--dataset", "mini"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "steps/s" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # two trainings and the queue between
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        for child in alive:
            child.kill()
    assert not alive


PACKED = (
    "max_failed_share: 0.5",
    "max_failed_share: 0.5\n  codecs: {residual: {codec: blosc_zstd}, "
    "cnn/logits/action: {codec: blosc_zstd}, clip/pytorchvideo/x3d_nano: {codec: blosc_zstd}}",
)


def packed(mini: Run) -> Run:
    """The same miniature run, its cache made again with compressed fields."""
    shutil.rmtree(mini.cache_path)
    run = write_config(Path.cwd(), PACKED)
    extract(run, options(run))
    return run


def test_compressed_fields_give_the_same_batches(mini: Run) -> None:
    expected = feed(mini)
    assert_same(feed(packed(mini)), expected)


def test_batches_stay_within_the_chunks_that_are_held(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = packed(mini)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    cache = open_cache(run.cache_path, blocks=True)
    assert (cache.chunks_held(), cache.num_chunks) == (1, 3)
    ids = cache.samples["sample_id"].to_pylist()
    orders = []
    for batches in (feed(run)[:2], feed(run)[2:]):  # an epoch each
        rows = [ids.index(name) for batch in batches for name in batch.names]
        chunks = [row // cache.chunk_samples for row in rows]
        assert sorted(rows) == list(range(14))
        assert sum(one != other for one, other in pairwise(chunks)) == 2  # chunk after chunk
        orders.append(rows)
    assert orders[0] != orders[1]
    assert feed(run)[0].names == [ids[row] for row in orders[0][:7]]  # the same each time


def test_both_students_from_a_compressed_cache(
    mini: Run,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = packed(mini)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    monkeypatch.setattr(stage, "run_side_by_side", in_turn)
    stage.distill(run, Options(run.cache_path, torch.device("cpu"), 0))
    assert (run.outputs / "distill" / "student.safetensors").exists()
    (record,) = [one for one in caplog.records if one.name.startswith("cache")]
    assert "residual (compressed: blosc_zstd)" in record.getMessage()
    said = " ".join(capfd.readouterr().err.split())
    assert "each batch is drawn from 1 of its 3 chunks" in said


def on_shelf(run: Run, folder: Path) -> str:
    """Push the run's cache; its address."""
    done = push_cache(run.cache_path, str(folder / "shelf"), author="ada", about=about_cache)
    return f"file://{done.url}"


def weights_of(run: Run) -> dict[str, bytes]:
    """What a distillation leaves of its two students."""
    folder = run.outputs / "distill"
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in stage.VARIANTS}


def test_a_cache_read_in_place_trains_the_same_students(
    mini: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "run_side_by_side", in_turn)
    stage.distill(mini, Options(mini.cache_path, torch.device("cpu"), 0))
    expected, url = weights_of(mini), on_shelf(mini, tmp_path)
    store = Store(tmp_path / "store")
    stage.distill(mini, Options(url, torch.device("cpu"), 0, store=store))
    assert weights_of(mini) == expected
    small = Store(tmp_path / "small", 200_000)
    stage.distill(mini, Options(url, torch.device("cpu"), 0, store=small))
    said = " ".join(capfd.readouterr().err.split())
    assert "is at hand at once: each batch is drawn from 1 of its 3 chunks" in said
    assert sum(path.stat().st_size for path in small.folder.rglob("c.*")) <= 200_000


def test_a_pulled_cache_trains_the_same_students(
    mini: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run_side_by_side", in_turn)
    stage.distill(mini, Options(mini.cache_path, torch.device("cpu"), 0))
    expected = weights_of(mini)
    pull_cache(on_shelf(mini, tmp_path), tmp_path / "copy")
    stage.distill(mini, Options(tmp_path / "copy", torch.device("cpu"), 0))
    assert weights_of(mini) == expected


def test_a_part_that_was_pulled_trains_what_it_can(
    mini: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "run_side_by_side", in_turn)
    url, copy = on_shelf(mini, tmp_path), tmp_path / "copy"
    chosen = ("vit", "cnn", f"clip/{mini.distill.student}")
    pull_cache(url, copy, Selection(fields=chosen, views=(1,), fraction=0.6))
    with pytest.raises(CacheError, match="holds nothing of residual, which distill reads for sdd:"):
        stage.distill(mini, Options(copy, torch.device("cpu"), 0))
    run = with_weights(mini, mini.distill.weights.model_copy(update={"sdd": 0.0}))
    stage.distill(run, Options(copy, torch.device("cpu"), 0))
    said = " ".join(capfd.readouterr().err.split())
    assert "10 of 14 samples × 2 views can be used" in said
    assert "was pulled in part: 35.7% of the rows that the config asks for are here" in said
    with pytest.raises(CacheError, match="--fields residual` fetches it"):
        stage.distill(mini, Options(copy, torch.device("cpu"), 0))
    pull_cache(url, copy)
    stage.distill(mini, Options(copy, torch.device("cpu"), 0))
