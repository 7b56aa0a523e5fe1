"""Stage one: what is in the cache is what the teachers said, and nothing is lost or mixed up."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache import CacheError, CacheWriter, IdentityMismatch, Status, open_cache, repair_cache
from cache_making import full_disk
from chain_making import nudge_weights, options, write_config
from pipeline.clips import ClipDataset, Read, Request, StoredViews, read_clips
from pipeline.config import Run
from pipeline.config_file import ConfigError
from pipeline.models import create_model
from pipeline.projection import Projection
from pipeline.samples import read_samples, samples_from_table
from pipeline.views import normalise
from pipeline.weights import WeightsError, load_weights
from stages.extract import ExtractError, extract
from stages.recompute import Options as Recompute
from stages.recompute import recompute


def files_of(cache: Path) -> dict[str, bytes]:
    """Bytes of every file; of commits only what does not tell when and by whom."""
    found = {}
    for path in sorted(cache.rglob("*")):
        if path.is_dir() or path.name == ".lock":
            continue
        content = path.read_bytes()
        if path.parent.name == "commits":
            commit = json.loads(content)
            content = json.dumps([commit["files"], commit["statuses"], commit["views"]]).encode()
        found[str(path.relative_to(cache))] = content
    return found


def test_a_row_is_what_both_teachers_say_of_its_replayed_view(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    samples = samples_from_table(cache.samples, "cache")
    row, view = 3, 1
    stored = {name: array[0] for name, array in cache.read([row], [view]).items()}
    vit = load_weights(mini.teach.vit.model, samples.heads, Path(mini.teach.vit.weights))
    cnn = load_weights(mini.teach.cnn.model, samples.heads, Path(mini.teach.cnn.weights))
    replayed = read_clips(
        Path(mini.prepare.root),
        samples.row(row),
        StoredViews(stored["views"][None]),
        [vit.clip, cnn.clip],
    )
    assert stored["input_digest"] == replayed.digests[0, 0]
    answers = []
    for model, clips in zip((vit, cnn), replayed.clips, strict=True):
        with torch.inference_mode():
            answers.append(model.features(normalise(torch.from_numpy(clips), model.clip)))
    for role, answer in zip(("vit", "cnn"), answers, strict=True):
        logits, pooled = answer.logits["action"][0].numpy(), answer.pooled[0].numpy()
        np.testing.assert_allclose(stored[f"{role}/logits/action"], logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(stored[f"{role}/pooled"], pooled, rtol=2e-3, atol=2e-3)
    projection = Projection.from_arrays(cache.projection, "aligned")
    residual = projection.residual(vit_map=answers[0].map, cnn_map=answers[1].map)[0].numpy()
    np.testing.assert_allclose(stored["residual"], residual, rtol=5e-3, atol=5e-3)


def test_samples_are_shuffled_by_seed_and_none_is_lost(mini: Run) -> None:
    stored = open_cache(mini.cache_path).samples["sample_id"].to_pylist()
    listed = read_samples(mini.samples_path).of_splits(["train"]).table["sample_id"].to_pylist()
    assert sorted(stored) == sorted(listed)
    assert stored != listed
    assert stored == [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]


def test_calibration_residual_has_mean_square_one(mini: Run) -> None:
    """View 0 of all samples is the calibration subset of the miniature run."""
    cache = open_cache(mini.cache_path)
    rows = np.arange(cache.num_samples)
    residual = cache.read(rows, np.zeros_like(rows), ["residual"])["residual"].astype(np.float64)
    assert np.mean(residual**2) == pytest.approx(1.0, rel=1e-2)


def test_a_second_run_does_no_work(mini: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in mini.cache_path.rglob("c.*")}
    extract(mini, options(mini))
    assert {path: path.stat().st_mtime_ns for path in mini.cache_path.rglob("c.*")} == before


def test_an_interrupted_run_ends_with_the_same_bytes(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = files_of(mini.cache_path)
    shutil.rmtree(mini.cache_path)
    write, calls = CacheWriter.write_chunk, []

    def interrupted(self: CacheWriter, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, *args, **kwargs)

    monkeypatch.setattr(CacheWriter, "write_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(mini, options(mini))
    assert 0 < open_cache(mini.cache_path).coverage < 1
    extract(mini, options(mini))
    assert files_of(mini.cache_path) == undisturbed
    assert len(calls) == 4  # three chunks, one of them twice


@pytest.mark.parametrize(("holder", "name"), [(Path, "replace"), (os, "fsync"), (Path, "rename")])
def test_a_full_disk_stops_the_run_and_loses_no_chunk(
    mini: Run, monkeypatch: pytest.MonkeyPatch, holder: object, name: str
) -> None:
    """Full as a chunk file, the disk itself, or the commit is written."""
    undisturbed = files_of(mini.cache_path)
    shutil.rmtree(mini.cache_path)
    write = CacheWriter.write_chunk

    def disturbed(self: CacheWriter, chunk: int, *args: Any, **kwargs: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if chunk == 1:
                patch.setattr(holder, name, full_disk)
            write(self, chunk, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_chunk", disturbed)
        with pytest.raises(CacheError, match=r"chunk 1 is not written, .* run the same command"):
            extract(mini, options(mini))
    assert open_cache(mini.cache_path).coverage == 5 / 14
    extract(mini, options(mini))
    assert files_of(mini.cache_path) == undisturbed


def test_where_decoding_is_the_limit_it_is_said(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_config(Path.cwd(), ("chunk_samples: 5", "chunk_samples: 1"))
    real = ClipDataset.__getitems__

    def slow(dataset: ClipDataset, requests: Sequence[Request]) -> list[Read]:
        time.sleep(0.3)
        return real(dataset, requests)

    monkeypatch.setattr(ClipDataset, "__getitems__", slow)
    extract(run, replace(options(run), out=Path("slow")))
    told = " ".join(capsys.readouterr().err.split())
    assert "decoding is the limit: the networks waited for clips for" in told
    (wanted,) = re.findall(r"--decoders (\d+), with a core each, would be enough", told)
    assert int(wanted) > 1


def test_more_views_leave_the_old_files_as_they_are(mini: Run) -> None:
    before = {path: path.read_bytes() for path in mini.cache_path.rglob("c.*")}
    extract(mini, options(mini, views=3))
    cache = open_cache(mini.cache_path)
    assert cache.num_views == 3
    assert cache.coverage == 1
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("views: {count: 2, seed: 0", "views: {count: 2, seed: 1"), "views.seed"),
        (("span_sec: 1.4", "span_sec: 1.0"), "views.span_sec"),
        (("dim: 4", "dim: 5"), "projection.dim"),
    ],
)
def test_another_identity_is_refused_naming_the_field(
    mini: Run, change: tuple[str, str], field: str
) -> None:
    other = write_config(Path.cwd(), change)
    with pytest.raises(IdentityMismatch, match=field.replace(".", r"\.")):
        extract(other, options(other))


BF16 = ("max_failed_share: 0.5", "max_failed_share: 0.5\n  precision: bf16")


def test_teachers_in_bfloat16_make_another_cache_of_nearly_the_same_values(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["vit/logits/action", "cnn/logits/action", "vit/pooled", "cnn/pooled"]
    full = open_cache(mini.cache_path)
    rows, views = np.indices((full.num_samples, full.num_views)).reshape(2, -1)
    exact = full.read(rows, views, names)
    run = write_config(Path.cwd(), BF16)
    with pytest.raises(IdentityMismatch, match=r"teachers\.vit\.precision"):
        extract(run, options(run))
    monkeypatch.setattr(sys, "argv", ["/bin/dualkd-cache", "extract", "--out", "two words"])
    extract(run, options(run, replace=True))
    half = open_cache(run.cache_path)
    assert half.provenance["dtype"] == "bfloat16"
    assert half.provenance["command"] == "dualkd-cache extract --out 'two words'"
    close = half.read(rows, views, names)
    for name in names:
        now, then = close[name].astype(np.float64), exact[name].astype(np.float64)
        rms = np.sqrt(np.mean(then**2, axis=1, keepdims=True))
        error = np.abs(now - then) / (np.abs(then) + rms)
        assert 0 < error.max() < 2.0**-4  # 8 bits of mantissa, over some layers
    again = recompute(run, run.cache_path, Recompute(6, 0, 0, 4, torch.device("cpu")))
    assert not again.findings


def test_other_weights_are_refused(mini: Run) -> None:
    nudge_weights(mini.teach.cnn)
    with pytest.raises(IdentityMismatch, match=r"teachers\.cnn\.weights_sha256"):
        extract(mini, options(mini))


def test_the_same_weights_in_another_file_are_the_same_cache(mini: Run) -> None:
    state = load_file(mini.teach.vit.weights)
    torch.save({"model_state": {f"module.{key}": state[key] for key in state}}, "vit.pyth")
    run = write_config(Path.cwd(), ("configs/mini/vit.safetensors", "vit.pyth"))
    before = {path: path.stat().st_mtime_ns for path in mini.cache_path.rglob("c.*")}
    assert before
    extract(run, options(run))
    assert {path: path.stat().st_mtime_ns for path in mini.cache_path.rglob("c.*")} == before


def test_weights_of_other_classes_name_the_switch(mini: Run) -> None:
    state = create_model(mini.teach.vit.model, 400).net.state_dict()
    torch.save(state, "kinetics.pth")
    run = write_config(Path.cwd(), ("configs/mini/vit.safetensors", "kinetics.pth"))
    with pytest.raises(WeightsError, match=r"kinetics\.pth does not fit [^`]*`new_head: true`"):
        extract(run, options(run))


def test_replace_moves_the_other_cache_aside(mini: Run) -> None:
    old = open_cache(mini.cache_path).fingerprint
    other = write_config(Path.cwd(), ("dim: 4", "dim: 5"))
    extract(other, options(other, replace=True))
    assert open_cache(other.cache_path).fingerprint != old
    aside = other.cache_path.with_name(f"cache-{old[:12]}")
    assert open_cache(aside).fingerprint == old


def test_replace_brings_the_first_cache_back(mini: Run) -> None:
    """Back to the old parameters: the cache that was moved aside is used, nothing is recomputed."""
    before = files_of(mini.cache_path)
    other = write_config(Path.cwd(), ("dim: 4", "dim: 5"))
    extract(other, options(other, replace=True))
    mine = write_config(Path.cwd())
    extract(mine, options(mine, replace=True))
    assert files_of(mine.cache_path) == before


def test_a_recorded_sample_with_another_file_is_refused(mini: Run) -> None:
    samples = read_samples(mini.samples_path)
    paths = samples.table["path"].to_pylist()
    name = samples.table["sample_id"][0].as_py()
    moved = Path(mini.prepare.root) / "elsewhere.mp4"
    shutil.copy(Path(mini.prepare.root) / paths[0], moved)
    paths[0] = "elsewhere.mp4"
    column = samples.table.column_names.index("path")
    table = samples.table.set_column(column, "path", [paths])
    from pipeline.samples import Samples, write_samples

    write_samples(Samples(samples.dataset, samples.classes, table), mini.samples_path)
    with pytest.raises(ExtractError, match=rf"{name}.*elsewhere\.mp4"):
        extract(mini, options(mini))


def test_bad_videos_are_recorded_and_the_rest_goes_on(mini: Run) -> None:
    shutil.rmtree(mini.cache_path)
    train = read_samples(mini.samples_path).of_splits(["train"])
    empty, cut, gone = (train.row(row) for row in (0, 1, 2))
    root = Path(mini.prepare.root)
    (root / empty.path).write_bytes(b"")
    content = (root / cut.path).read_bytes()
    (root / cut.path).write_bytes(content[: len(content) // 2])
    (root / gone.path).unlink()
    extract(mini, options(mini))
    cache = open_cache(mini.cache_path)
    names = cache.samples["sample_id"].to_pylist()
    bad = {sample.sample_id for sample in (empty, cut, gone)}
    for row, name in enumerate(names):
        wanted = Status.UNREADABLE_VIDEO if name in bad else Status.VALID
        assert (cache.status[row] == wanted).all()
    assert set(cache.failures) == bad
    assert "0 bytes" in cache.failures[empty.sample_id]
    assert "no such file" in cache.failures[gone.sample_id]
    row = names.index(gone.sample_id)
    assert np.isnan(cache.read([row], [0], ["vit/pooled"])["vit/pooled"]).all()


def test_too_many_bad_videos_stop_the_run(mini: Run) -> None:
    shutil.rmtree(mini.cache_path)
    run = write_config(Path.cwd(), ("max_failed_share: 0.5", "max_failed_share: 0.05"))
    sample = read_samples(run.samples_path).row(0)
    path = Path(run.prepare.root) / sample.path
    content = path.read_bytes()
    path.write_bytes(b"")
    for _ in range(2):  # what failed before counts too
        with pytest.raises(ExtractError, match=r"max_failed_share 5%.*0 bytes.*repair --failed"):
            extract(run, options(run))
    path.write_bytes(content)
    repaired = repair_cache(run.cache_path, failed=True)
    assert [dropped.chunk for dropped in repaired.dropped]
    extract(run, options(run))
    cache = open_cache(run.cache_path)
    assert cache.failures == {}
    assert (cache.status == Status.VALID).all()


def test_replace_brings_a_cache_back_to_an_empty_place(mini: Run) -> None:
    """As after a run that failed once the other cache had been moved aside."""
    mark = open_cache(mini.cache_path).fingerprint[:12]
    before = files_of(mini.cache_path)
    mini.cache_path.rename(mini.cache_path.with_name(f"cache-{mark}"))
    extract(mini, options(mini, replace=True))
    assert files_of(mini.cache_path) == before


def test_figures_of_another_cache_are_not_those_of_the_run(mini: Run) -> None:
    before = (mini.outputs / "extract.json").read_bytes()
    extract(mini, replace(options(mini), out=Path("elsewhere"), limit=9))
    assert (mini.outputs / "extract.json").read_bytes() == before


def test_an_output_that_is_not_finite_is_recorded(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mini.cache_path)
    real = Projection.residual

    def broken(self: Projection, **maps: torch.Tensor) -> torch.Tensor:
        residual = real(self, **maps)
        residual[0, 0, 0, 0, 0] = 1e6  # finite in float32, infinite in float16
        return residual

    monkeypatch.setattr(Projection, "residual", broken)
    run = write_config(Path.cwd(), ("max_failed_share: 0.5", "max_failed_share: 1.0"))
    extract(run, options(run))
    cache = open_cache(run.cache_path)
    assert (cache.status == Status.NON_FINITE_OUTPUT).any()
    assert "not finite" in next(iter(cache.failures.values()))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_is_something_else_is_refused_and_kept(mini: Run, kind: str) -> None:
    shutil.rmtree(mini.cache_path)
    if kind == "file":
        mini.cache_path.write_text("mine")
    else:
        mini.cache_path.mkdir()
        (mini.cache_path / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="cache"):
        extract(mini, options(mini))
    kept = mini.cache_path if kind == "file" else mini.cache_path / "thesis.tex"
    assert kept.read_text() == "mine"


def with_codecs(codecs: str) -> Run:
    """The miniature run with `extract.codecs`."""
    change = ("max_failed_share: 0.5", f"max_failed_share: 1.0\n  codecs: {{{codecs}}}")
    return write_config(Path.cwd(), change)


def test_a_codec_of_the_config_compresses_its_field(mini: Run) -> None:
    plain = open_cache(mini.cache_path).read([3], [1])
    shutil.rmtree(mini.cache_path)
    run = with_codecs("residual: {codec: bitround, keepbits: 6}, vit/pooled: {codec: blosc_zstd}")
    extract(run, options(run))
    cache = open_cache(run.cache_path, blocks=True)
    assert cache.identity["codecs"] == {"residual": {"codec": "bitround", "keepbits": 6}}
    rows = cache.read([3], [1])
    np.testing.assert_array_equal(rows["vit/pooled"], plain["vit/pooled"])
    np.testing.assert_allclose(rows["residual"], plain["residual"], rtol=2.0**-7)
    assert (rows["residual"] != plain["residual"]).any()


def test_a_lossy_codec_makes_another_cache_and_a_lossless_one_does_not(
    mini: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run = with_codecs("residual: {codec: bitround, keepbits: 6}")
    with pytest.raises(IdentityMismatch, match=r"codecs: cache \(absent\), wanted .*keepbits"):
        extract(run, options(run))
    run = with_codecs("residual: {codec: blosc_zstd}")
    before = files_of(run.cache_path)
    extract(run, options(run))
    assert files_of(run.cache_path) == before
    said = " ".join(capfd.readouterr().err.split())
    assert "residual stays as it is (no codec); blosc_zstd of extract.codecs counts when" in said


def test_a_row_that_its_codec_cannot_hold_fails_and_says_why(mini: Run) -> None:
    shutil.rmtree(mini.cache_path)
    run = with_codecs("residual: {codec: fixed8, low: -2.0, high: 2.0}")
    extract(run, options(run))
    cache = open_cache(run.cache_path, blocks=True)
    failed = cache.status == Status.NON_FINITE_OUTPUT
    assert failed.any()
    reason = next(iter(cache.failures.values()))
    assert re.fullmatch(
        r"residual has values from -?\d\S* to \d\S*; fixed8, low -2\.0, high 2\.0, .*", reason
    )
    rows, views = np.nonzero(failed)
    assert np.isnan(cache.read(rows, views, ["residual"])["residual"]).all()
    rows, views = np.nonzero(~failed)
    assert np.isfinite(cache.read(rows, views, ["residual"])["residual"]).all()


def test_a_codec_for_a_field_that_is_not_there_is_refused(mini: Run) -> None:
    run = with_codecs("residul: {codec: blosc_zstd}")
    with pytest.raises(ConfigError, match=r"extract\.codecs names residul; the fields .*residual"):
        extract(run, options(run))
