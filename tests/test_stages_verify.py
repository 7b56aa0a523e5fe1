"""Proving a cache against videos and teachers; losing a byte, and getting it back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import chain_making
from cache import (
    DamagedError,
    IdentityMismatch,
    Kind,
    Selection,
    open_cache,
    pull_cache,
    repair_cache,
    verify_cache,
)
from cache.commits import package_versions
from chain_making import nudge_weights, replace_column, write_config
from pipeline.config import Run
from pipeline.samples import read_samples, write_samples
from stages import cache_cli, recompute
from stages.extract import extract
from stages.recompute import TOLERANCE, Options, RecomputeError


def options(rows: int = 28, *, seed: int = 0, decoders: int = 0) -> Options:
    """What `dualkd-cache verify` passes on."""
    return Options(rows, seed, decoders, 8, torch.device("cpu"))


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `dualkd-cache` as its entry point does; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["dualkd-cache", *arguments])
    with pytest.raises(SystemExit) as stop:
        cache_cli.main()
    return int(stop.value.code or 0)


# --- rows made again ---------------------------------------------------------------------------


def test_every_row_of_a_fresh_cache_comes_out_again(mini: Run) -> None:
    result = recompute.recompute(mini, mini.cache_path, options(1000))
    assert result.rows == 28
    assert result.findings == []
    cache = open_cache(mini.cache_path)
    assert result.fields.keys() == cache.fields.keys() - {"status", "input_digest"}
    assert result.fields["clip/pytorchvideo/x3d_nano"].largest == 0
    assert result.fields["views"].largest == 0
    for name, field in result.fields.items():
        assert 0 <= field.of_tolerance < 1, name


def test_rows_are_drawn_by_seed(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    drawn = [recompute._draw_rows(cache, options(5, seed=seed)).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len({tuple(row) for row in rows}) == 5 for rows in drawn)


def test_other_frames_are_named_with_both_decoders(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_samples(mini.samples_path).of_splits(["train"])
    one, other = samples.row(0), samples.row(1)
    root = Path(mini.prepare.root)
    shutil.copy(root / other.path, root / one.path)
    monkeypatch.setattr(recompute, "environment", lambda: {"decoder": "PyAV 99"})
    result = recompute.recompute(mini, mini.cache_path, options())
    assert [(finding.sample_id, finding.view) for finding in result.findings] == [
        (one.sample_id, 0),
        (one.sample_id, 1),
    ]
    decoder = open_cache(mini.cache_path).provenance["decoder"]
    assert decoder.startswith("PyAV ")
    what = result.findings[0].what
    assert what.startswith("has other frames: input_digest ")
    assert "by PyAV 99, recorded " in what
    assert what.endswith(f" by {decoder}")
    assert result.fields["vit/pooled"].of_tolerance > 1
    assert result.other_frames == 2


def test_other_copies_are_told_with_what_they_mean(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = read_samples(mini.samples_path).of_splits(["train"]).row(0)
    path = Path(mini.prepare.root) / sample.path
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        rate = file.streams.video[0].average_rate
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "35"})
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    command = ("verify", str(mini.cache_path), "--dataset", "mini", "--recompute", "28")
    assert run_command(monkeypatch, *command) == 1
    said = capsys.readouterr().out
    assert f"{sample.sample_id}, view 0: has other frames: input_digest " in said
    assert "2 of 28 rows have other frames here: these copies of the videos are re-encoded" in said
    assert "students that train on clips stored in the cache are not touched" in said
    assert "NOT well" not in said
    assert said.splitlines()[-1] == (
        "the cache is sound, every byte as it was recorded; but it is not proven against these "
        "videos: see above"
    )


def test_a_part_that_was_pulled_is_proved_as_far_as_it_is_here(mini: Run, tmp_path: Path) -> None:
    pull_cache(str(mini.cache_path), tmp_path / "c", Selection(fields=("vit/logits",), views=(1,)))
    result = recompute.recompute(mini, tmp_path / "c", options())
    assert (result.rows, result.findings) == (14, [])
    assert result.fields.keys() == {"views", "vit/logits/action"}
    assert "residual" in result.lacking


def test_a_video_that_is_gone_is_named(mini: Run) -> None:
    sample = read_samples(mini.samples_path).of_splits(["train"]).row(2)
    (Path(mini.prepare.root) / sample.path).unlink()
    result = recompute.recompute(mini, mini.cache_path, options(decoders=1))
    assert {finding.sample_id for finding in result.findings} == {sample.sample_id}
    assert "was readable when the cache was made, and is not now: " in result.findings[0].what


def test_other_outputs_on_the_same_frames_are_named_with_field_and_size(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_values = recompute.stored_values

    def shifted(*args: Any) -> dict[str, Any]:
        values = stored_values(*args)
        values["residual"] = values["residual"] + np.float16(0.25)
        values["cnn/pooled"] = values["cnn/pooled"] * np.float16(1.001)  # one rounding
        return values

    monkeypatch.setattr(recompute, "stored_values", shifted)
    result = recompute.recompute(mini, mini.cache_path, options(3))
    assert len(result.findings) == 3
    assert result.findings[0].what.startswith("differs in residual by up to 0.25")
    assert result.fields["residual"].largest == pytest.approx(0.25, abs=5e-3)
    assert result.fields["cnn/pooled"].of_tolerance < 1


def test_rows_of_compressed_fields_are_made_again(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lossy codec is allowed for, and what goes beyond it is still found."""
    shutil.rmtree(mini.cache_path)
    codecs = (
        "{residual: {codec: bitround, keepbits: 4}, vit/pooled: {codec: blosc_zstd}, "
        "vit/logits/action: {codec: fixed8, low: -16.0, high: 16.0}}"
    )
    change = ("max_failed_share: 0.5", f"max_failed_share: 0.5\n  codecs: {codecs}")
    run = write_config(Path.cwd(), change)
    extract(run, chain_making.options(run))
    result = recompute.recompute(run, run.cache_path, options())
    assert result.findings == []
    for name in ("residual", "vit/logits/action"):
        assert result.fields[name].largest > 0
        assert 0.1 < result.fields[name].of_tolerance < 1
    assert result.fields["residual"].codec == "bitround, keepbits 4"
    assert result.fields["vit/pooled"].codec is None
    command = ("verify", str(run.cache_path), "--dataset", "mini", "--recompute", "2")
    assert run_command(monkeypatch, *command) == 0
    assert "× the tolerance, which allows for bitround, keepbits 4" in capsys.readouterr().out
    stored_values = recompute.stored_values

    def shifted(*args: Any) -> dict[str, Any]:
        values = stored_values(*args)
        values["vit/logits/action"] = values["vit/logits/action"] + np.float16(0.2)
        return values

    monkeypatch.setattr(recompute, "stored_values", shifted)
    findings = recompute.recompute(run, run.cache_path, options(2)).findings
    assert {finding.what.split(" by ")[0] for finding in findings} == {
        "differs in vit/logits/action"
    }


FP32 = 2.0**-9


def test_the_tolerance_is_what_the_page_says(mini: Run) -> None:
    then = np.array([[3.0, -4.0, 0.0]], np.float16)  # root mean square √(25/3)
    rms = np.sqrt(25 / 3)
    now = then + np.array([[0, 0, 2.0**-9 * rms]])
    largest, share = recompute._differences(now, then, None, FP32)
    assert largest[0] == pytest.approx(2.0**-9 * rms)
    assert share[0] == pytest.approx(1)
    now = then + np.array([[0, 2.0**-9 * (4 + rms), 0]])
    assert recompute._differences(now, then, None, FP32)[1][0] == pytest.approx(1)
    clip = np.array([[7, 8]], np.uint8)
    assert recompute._differences(clip + np.uint8(1), clip, None, FP32)[1][0] > 1
    assert recompute._differences(clip, clip, None, FP32)[1][0] == 0
    broken = np.array([[np.nan, 1, 1]], np.float16)
    assert recompute._differences(broken, then, None, FP32)[1][0] > 1
    assert TOLERANCE == {"fp32": FP32, "bf16": 2.0**-3}


def test_another_identity_is_refused_first(mini: Run) -> None:
    other = write_config(Path.cwd(), ("span_sec: 1.4", "span_sec: 1.0"))
    with pytest.raises(IdentityMismatch, match=r"views\.span_sec: cache 1.4, wanted 1.0"):
        recompute.recompute(other, other.cache_path, options(0))
    nudge_weights(mini.teach.vit)
    with pytest.raises(IdentityMismatch, match=r"teachers\.vit\.weights_sha256"):
        recompute.recompute(write_config(Path.cwd()), mini.cache_path, options(0))


@pytest.mark.parametrize(
    ("column", "value"),
    [("path", "elsewhere.mp4"), ("stop_sec", 0.75), ("label_action", 13), ("split", "test")],
)
def test_samples_that_are_others_now_are_refused_by_name(
    mini: Run, column: str, value: object
) -> None:
    name = replace_column(mini, column, 1, value)
    with pytest.raises(
        RecomputeError, match=rf"sample {name} was recorded with {column} .*{value}"
    ):
        recompute.recompute(mini, mini.cache_path, options(0))


def test_samples_that_are_gone_are_refused_by_name_and_more_are_no_harm(mini: Run) -> None:
    samples = read_samples(mini.samples_path)
    backwards = samples.take(range(len(samples) - 1, -1, -1))
    write_samples(backwards, mini.samples_path)
    assert recompute.recompute(mini, mini.cache_path, options(1)).findings == []
    name = samples.table["sample_id"][0].as_py()
    write_samples(samples.take(range(1, len(samples))), mini.samples_path)
    with pytest.raises(RecomputeError, match=f"sample {name} is not in the samples table"):
        recompute.recompute(mini, mini.cache_path, options(0))


# --- the commands ------------------------------------------------------------------------------


def test_verify_as_json_and_for_people(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(mini.cache_path)
    against = ("--recompute", "3", "--dataset", "mini", "--device", "cpu")
    assert run_command(monkeypatch, "verify", path, *against, "--json") == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["ok"] is True
    assert facts["fingerprint"] == open_cache(path).fingerprint
    assert (facts["coverage"], facts["findings"], facts["versions"]) == (1, [], {})
    assert facts["rows"]["valid"] == 28
    assert facts["recomputed"]["rows"] == 3
    assert facts["recomputed"]["fields"]["residual"]["of_tolerance"] < 1
    assert "verifying: 6/6 chunks" in err
    assert run_command(monkeypatch, "verify", path) == 0
    out = capsys.readouterr().out
    assert "coverage 100.0%; rows: 28 valid" in out
    assert out.endswith("all is well\n")


def test_verify_tells_other_versions_without_refusing(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = package_versions()
    monkeypatch.setattr("stages.recorded.package_versions", lambda: made | {"torch": "99.0"})
    monkeypatch.setattr("stages.recorded.environment", lambda: {"decoder": "PyAV 99"})
    assert run_command(monkeypatch, "verify", str(mini.cache_path)) == 0
    out = capsys.readouterr().out
    assert f"torch: made with {made['torch']}, here is 99.0 (told, not refused)" in out
    assert "decoder: made with PyAV" in out
    assert "here is PyAV 99 (told, not refused)" in out
    assert run_command(monkeypatch, "extract", "--dataset", "mini") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"was made with other versions: torch {made['torch']}, here 99.0; decoder PyAV" in told


def test_recompute_needs_a_dataset(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "verify", str(mini.cache_path), "--recompute", "3") == 2
    assert "--recompute needs --dataset" in capsys.readouterr().err


def test_a_row_that_does_not_come_out_again_fails(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(mini.prepare.root)
    moved = root.rename(root.with_name("moved"))
    sample = read_samples(mini.samples_path).of_splits(["train"]).row(0)
    (moved / sample.path).write_bytes(b"")
    arguments = ("verify", str(mini.cache_path), "--dataset", "mini", "--root", str(moved))
    assert run_command(monkeypatch, *arguments) == 0
    assert run_command(monkeypatch, *arguments, "--recompute", "28") == 1
    out = capsys.readouterr().out
    assert f"{sample.sample_id}, view 0: was readable when the cache was made" in out
    assert out.endswith("recorded; but not every row comes out again here: see above\n")


def test_a_partial_cache_is_sound(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (mini.cache_path / "commits" / "1.json").unlink()
    repaired = repair_cache(mini.cache_path)
    assert [one.chunk for one in repaired.dropped] == [1]
    assert run_command(monkeypatch, "verify", str(mini.cache_path)) == 0
    assert "coverage 64.3% (what is not there yet is no damage)" in capsys.readouterr().out


def test_a_flipped_byte_is_read_found_repaired_and_made_again(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mini.cache_path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    spoilt = path / "vit" / "pooled" / "c.1.1.0"
    content = bytearray(before[spoilt])
    content[100] ^= 1
    spoilt.write_bytes(content)
    with pytest.raises(DamagedError, match=f"`dualkd-cache repair {path}`"):
        open_cache(path).read([7], [1])
    assert run_command(monkeypatch, "verify", str(path)) == 1
    out = capsys.readouterr().out
    assert "chunk: vit/pooled/c.1.1.0 is damaged: crc32c is" in out
    assert f"`dualkd-cache repair {path}` drops the damaged chunks" in out
    assert run_command(monkeypatch, "repair", str(path)) == 0
    out = capsys.readouterr().out
    assert (
        "dropped: commits/1.json of chunk 1 (5 samples from 5 on); views to make again: 0, 1" in out
    )
    assert f"`dualkd-cache extract --dataset mini --out {path}` makes the dropped rows again" in out
    extract(mini, chain_making.options(mini))
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after.keys() == before.keys()
    changed = {file.relative_to(path).as_posix() for file in after if after[file] != before[file]}
    assert changed <= {"commits/1.json"}  # it tells when and by whom
    assert run_command(monkeypatch, "verify", str(path)) == 0
    capsys.readouterr()
    assert run_command(monkeypatch, "repair", str(path)) == 0
    assert "is sound: there was nothing to repair" in capsys.readouterr().out


def test_repair_says_what_it_cannot_mend(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mini.cache_path
    table = (path / "samples.parquet").read_bytes()
    (path / "samples.parquet").write_bytes(table[:-9] + b"?" + table[-8:])
    assert run_command(monkeypatch, "verify", str(path), "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in facts["findings"]] == [Kind.METADATA]
    assert facts["recomputed"] is None
    assert run_command(monkeypatch, "repair", str(path)) == 1
    out = capsys.readouterr().out
    assert "not repaired: samples.parquet is damaged: its sha256 is" in out
    assert f"put it back from another copy of this cache, or move {path} away" in out
    assert "nothing was dropped" in out
    assert verify_cache(path).coverage == 1
