"""`extract` on a cache that stands: it grows to what is asked for, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import CacheError, IdentityMismatch, Status, TeacherCache, open_cache, verify_cache
from cache_making import contents
from chain_making import nudge_weights, options, write_config
from pipeline.clips import ClipDataset, Read, Request
from pipeline.config import Run
from pipeline.config_file import ConfigError
from pipeline.models import create_model
from pipeline.samples import Samples, read_samples, write_samples
from pipeline.weights import save_weights
from stages import recompute
from stages.chunk_arrays import ChunkArrays, Outputs
from stages.distill import check_cache
from stages.extract import ExtractError, extract
from stages.feed import Feed, used_part
from stages.plan import Options as PlanOptions
from stages.plan import plan

CLIPS = "clips: [pytorchvideo/x3d_nano"
ADDED = (
    "max_failed_share: 0.5",
    "max_failed_share: 0.5\n"
    "  added: {slow: {model: pytorchvideo/x3d_tiny, weights: configs/mini/slow.safetensors}}",
)
BOTH_SPLITS = ("splits: [train]", "splits: [train, test]")


def standing(cache: Path) -> dict[str, bytes]:
    """All that never changes: everything but the metadata."""
    return {
        name: content
        for name, content in contents(cache, commits=True).items()
        if not name.endswith(("zarr.json", "manifest.json"))
    }


def with_slow(*changes: tuple[str, str]) -> Run:
    """The miniature run with a third teacher, of random weights of its own."""
    run = write_config(Path.cwd(), ADDED, *changes)
    torch.manual_seed(7)
    model = create_model("pytorchvideo/x3d_tiny", 14)
    save_weights(model, Path(run.extract.added["slow"].weights), {"made": "random"})
    return run


def with_teachers(names: str) -> Run:
    """The same, trained from these two teachers."""
    return with_slow(("temperature: 2.0", f"temperature: 2.0\n  teachers: {names}"))


def fresh(run: Run) -> TeacherCache:
    """The same cache made at once, in another place."""
    out = Path("fresh")
    extract(run, replace(options(run), out=out))
    return open_cache(out)


def assert_same_rows(cache: TeacherCache, other: TeacherCache) -> None:
    rows = np.divmod(np.arange(cache.num_samples * cache.num_views), cache.num_views)
    assert cache.fields.keys() == other.fields.keys()
    assert cache.fingerprint == other.fingerprint
    for name, values in cache.read(*rows).items():
        np.testing.assert_array_equal(values, other.read(*rows, [name])[name], err_msg=name)


def assert_proven(run: Run) -> None:
    """Nothing is damaged, and every row comes out again."""
    assert verify_cache(run.cache_path).findings == []
    again = recompute.Options(1000, 0, 0, 8, torch.device("cpu"))
    assert recompute.recompute(run, run.cache_path, again).findings == []


@pytest.mark.parametrize("first", ["pytorchvideo/x3d_nano", "pytorchvideo/x3d_tiny"])
def test_another_students_clips_are_added(
    mini: Run, first: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = standing(mini.cache_path)
    other = "pytorchvideo/x3d_tiny"
    listed = (first, other if first == "pytorchvideo/x3d_nano" else "pytorchvideo/x3d_nano")
    run = write_config(Path.cwd(), (f"{CLIPS}]", f"clips: [{', '.join(listed)}]"))
    extract(run, options(run))
    # No network waited for them.
    assert "decoding is the limit" not in " ".join(capfd.readouterr().err.split())
    after = standing(run.cache_path)
    assert {name: after[name] for name in before} == before
    grown, made = open_cache(run.cache_path), fresh(run)
    assert grown.coverage == 1
    assert_same_rows(grown, made)
    assert_proven(run)


def test_clips_that_were_added_are_kept_up_as_the_cache_grows(mini: Run) -> None:
    """They need not be named again: a new row has all that the cache stores of a row."""
    tiny = write_config(Path.cwd(), (CLIPS, f"{CLIPS}, pytorchvideo/x3d_tiny"))
    extract(tiny, options(tiny))
    plain = write_config(Path.cwd())
    assert plan(plain, planned(plain, 3))["to_make"]["clip_views"] == 14
    extract(plain, options(plain, views=3))
    grown = open_cache(plain.cache_path)
    assert set(grown.coverage_by_field().values()) == {1.0}
    extract(tiny, replace(options(tiny, views=3), out=Path("fresh")))
    rows, views = np.arange(14).repeat(3), np.tile(np.arange(3), 14)
    at_once = open_cache("fresh").read(rows, views)
    for name, values in grown.read(rows, views).items():
        np.testing.assert_array_equal(values, at_once[name])


def test_views_and_clips_that_grow_together_share_one_decode(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = [], ClipDataset.__getitems__

    def counted(dataset: ClipDataset, indices: Sequence[Request]) -> list[Read]:
        read.extend(row for row, _ in indices)
        return real(dataset, indices)

    run = write_config(Path.cwd(), (CLIPS, f"{CLIPS}, pytorchvideo/x3d_tiny"))
    assert plan(run, planned(run, 3))["to_make"]["samples"] == 14
    monkeypatch.setattr(ClipDataset, "__getitems__", counted)
    extract(run, options(run, views=3))
    assert sorted(read) == list(range(14))
    assert set(open_cache(run.cache_path).coverage_by_field().values()) == {1.0}


@pytest.mark.parametrize(("limit", "views"), [(4, 3), (10, 2), (12, 3), (None, 2)])
def test_a_plan_says_what_the_extraction_then_makes(
    mini: Run, monkeypatch: pytest.MonkeyPatch, limit: int | None, views: int
) -> None:
    """From a cache of 9 samples in chunks of 5, fewer or more of them; see what networks get."""
    made: list[int] = []
    real = ChunkArrays.enter

    def counted(chunk: ChunkArrays, batch: Sequence[Read], outputs: Sequence[Outputs]) -> None:
        made.append(len(batch) * len(batch[0].clips.views if batch[0].clips else ()))
        real(chunk, batch, outputs)

    shutil.rmtree(mini.cache_path)
    run = write_config(Path.cwd(), ("samples: 14", "samples: 9"))
    extract(run, replace(options(run), limit=9))
    facts = plan(run, replace(planned(run, views), limit=limit))
    monkeypatch.setattr(ChunkArrays, "enter", counted)
    extract(run, replace(options(run, views=views), limit=limit))
    assert facts["to_make"]["views"]["vit"] == sum(made)
    cache = open_cache(run.cache_path)
    assert (facts["samples"], facts["views"]) == (cache.num_samples, cache.num_views)


def planned(run: Run, views: int) -> PlanOptions:
    """A plan of a moment."""
    device = torch.device("cpu")
    return PlanOptions(run.cache_path, views, None, 0, 4, seconds=0.01, device=device)


def test_another_teacher_is_added_and_trained_from(mini: Run) -> None:
    before = standing(mini.cache_path)
    run = with_teachers("[vit, slow]")
    with pytest.raises(CacheError, match="lacks slow/logits/action; `dualkd-cache extract"):
        used_part(run, open_cache(run.cache_path))
    extract(run, options(run))
    after = standing(run.cache_path)
    assert {name: after[name] for name in before} == before
    grown = open_cache(run.cache_path)
    assert_same_rows(grown, fresh(run))
    assert grown.added["slow"]["model"] == "pytorchvideo/x3d_tiny"
    assert_proven(run)
    check_cache(run, grown)
    samples = read_samples(run.samples_path)
    feed = Feed(run, grown, used_part(run, grown), torch.device("cpu"), 0)
    batch = next(iter(feed(0)))
    rows = [grown.samples["sample_id"].to_pylist().index(name) for name in batch.names]
    assert batch.teachers is not None
    for logits, name in ((batch.teachers.vit_logits, "vit"), (batch.teachers.cnn_logits, "slow")):
        found = logits["action"]
        assert found is not None
        stored = np.stack(
            [grown.read(rows, [view] * len(rows))[f"{name}/logits/action"] for view in (0, 1)]
        )
        assert (stored == found.numpy()).all(axis=2).any(axis=0).all()
    assert len(samples) == 28


def samples_of(cache: TeacherCache) -> Samples:
    from pipeline.samples import samples_from_table

    return samples_from_table(cache.samples, "cache")


def test_other_weights_of_an_added_teacher_are_refused(mini: Run) -> None:
    run = with_slow()
    extract(run, options(run))
    nudge_weights(run.extract.added["slow"])
    with pytest.raises(IdentityMismatch, match=r"added\.slow\.weights_sha256: cache"):
        extract(run, options(run))
    with pytest.raises(IdentityMismatch, match=r"added\.slow\.weights_sha256: cache"):
        recompute.recompute(run, run.cache_path, recompute.Options(0, 0, 0, 8, torch.device("cpu")))
    trained = with_teachers("[slow, cnn]")
    nudge_weights(run.extract.added["slow"])
    with pytest.raises(IdentityMismatch, match=r"added\.slow\.weights_sha256: cache"):
        check_cache(trained, open_cache(run.cache_path))


def test_a_config_without_the_added_teacher_leaves_it_alone(
    mini: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run = with_slow()
    extract(run, options(run))
    plain = write_config(Path.cwd())
    extract(plain, options(plain, views=3))
    said = " ".join(capfd.readouterr().err.split())
    assert "not asked for now, and there in part: slow/status 66.7%" in said
    check_cache(plain, open_cache(plain.cache_path))
    again = with_slow()
    extract(again, options(again, views=3))
    assert open_cache(again.cache_path).coverage == 1
    assert_proven(again)


def test_a_video_that_is_gone_fails_for_the_added_teacher_only(mini: Run) -> None:
    sample = samples_of(open_cache(mini.cache_path)).row(6)
    (Path(mini.prepare.root) / sample.path).unlink()
    run = with_slow()
    extract(run, options(run))
    cache = open_cache(run.cache_path)
    assert (cache.status == Status.VALID).all()
    assert (cache.status_of("slow/pooled")[6] == Status.UNREADABLE_VIDEO).all()
    assert "no such file" in cache.failures[sample.sample_id]
    trained = with_teachers("[slow, cnn]")
    assert not used_part(trained, cache).valid[6].any()
    assert used_part(run, cache).valid.all()
    clips = write_config(Path.cwd(), ADDED, (CLIPS, f"{CLIPS}, pytorchvideo/x3d_tiny"))
    with pytest.raises(ExtractError, match=f"{sample.sample_id} was readable when the cache was"):
        extract(clips, options(clips))
    assert verify_cache(run.cache_path).ok


def test_another_video_is_never_added_to(mini: Run) -> None:
    samples = samples_of(open_cache(mini.cache_path))
    one, other = (Path(mini.prepare.root) / samples.row(row).path for row in (3, 4))
    shutil.copy(other, one)
    run = with_slow()
    message = f"{samples.row(3).sample_id} has other frames than when the cache was made"
    with pytest.raises(ExtractError, match=message):
        extract(run, options(run))
    assert verify_cache(run.cache_path).ok


def test_another_split_is_appended_and_not_trained_on(mini: Run) -> None:
    before = standing(mini.cache_path)
    old = open_cache(mini.cache_path)
    run = write_config(Path.cwd(), BOTH_SPLITS)
    extract(run, options(run))
    after = standing(run.cache_path)
    assert {name: after[name] for name in before} == before
    cache = open_cache(run.cache_path)
    assert (cache.parts, cache.coverage) == ((14, 14), 1.0)
    assert cache.samples.slice(0, 14).equals(old.samples)
    assert cache.samples["split"].to_pylist() == ["train"] * 14 + ["test"] * 14
    assert cache.fingerprint == old.fingerprint
    assert_proven(run)
    assert used_part(run, cache).rows.tolist() == list(range(14))
    tested = write_config(
        Path.cwd(), BOTH_SPLITS, ("temperature: 2.0", "temperature: 2.0\n  splits: [test]")
    )
    assert used_part(tested, cache).rows.tolist() == list(range(14, 28))
    check_cache(tested, cache)
    extract(write_config(Path.cwd()), options(mini))  # which has all that train asks for
    assert standing(run.cache_path) == after


def test_a_limit_is_a_beginning(mini: Run) -> None:
    """The order is shuffled and the same, so a trial of some samples becomes the whole."""
    shutil.rmtree(mini.cache_path)
    run = write_config(Path.cwd(), ("samples: 14, seed", "samples: 9, seed"))
    whole = fresh(run)
    for limit in (9, 11, 10, None):
        extract(run, replace(options(run), limit=limit))
    cache = open_cache(run.cache_path)
    assert cache.parts == (9, 2, 3)
    assert_same_rows(cache, whole)
    assert cache.samples.equals(whole.samples)


def test_what_a_standing_cache_keeps_is_told(mini: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_config(Path.cwd(), ("chunk_samples: 5", "chunk_samples: 7"))
    extract(run, replace(options(run), limit=3))
    told = " ".join(capsys.readouterr().err.split())
    assert "its chunks stay of 5 samples" in told
    assert "has 14 samples: --limit 3 drops none" in told
    assert open_cache(run.cache_path).chunk_samples == 5


def test_a_projection_of_few_samples_does_not_serve_for_many(mini: Run) -> None:
    shutil.rmtree(mini.cache_path)
    extract(mini, replace(options(mini), limit=9))
    extract(mini, replace(options(mini), limit=9))
    with pytest.raises(ExtractError, match=r"fitted on 9 samples.*now takes 14.*`samples: 9`"):
        extract(mini, options(mini))
    run = write_config(Path.cwd(), ("samples: 14, seed", "samples: 9, seed"))
    extract(run, options(run))
    assert open_cache(run.cache_path).num_samples == 14


def test_samples_that_are_listed_no_more_are_refused(mini: Run) -> None:
    samples = read_samples(mini.samples_path)
    name = samples.row(2).sample_id
    fewer = samples.take([row for row in range(len(samples)) if row != 2])
    write_samples(fewer, mini.samples_path)
    with pytest.raises(ExtractError, match=f"holds 1 samples that .* the first is {name}"):
        extract(mini, options(mini))
    extract(mini, options(mini, replace=True))
    assert open_cache(mini.cache_path).num_samples == 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            (
                "max_failed_share: 0.5",
                "max_failed_share: 0.5\n  added: {vit: {model: pytorchvideo/x3d_s, weights: w}}",
            ),
            r"extract\.added: got .*names other than clip, cnn,",
        ),
        (
            ("temperature: 2.0", "temperature: 2.0\n  teachers: [vit, slow]"),
            r"distill\.teachers: got 'slow', expected one of vit, cnn \(extract\.added",
        ),
        (
            ("temperature: 2.0", "temperature: 2.0\n  splits: [val]"),
            r"distill\.splits: got 'val', expected a split of prepare\.splits \(train, test\)",
        ),
    ],
)
def test_mistakes_in_the_config_are_told(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_config(tmp_path, change)
