"""A student's clips: decoded from the videos as `distill` does it, from JPEG, and from raw.

The clip is X3D-S's, 13 frames of 182 pixels. The videos are made as decode.py makes them, 10 s
each, and of each one view is read, as in an epoch; `--video` adds real ones. The caches, one of
each format, hold clips of the 340×256 videos: random rows, their pages warm. One thread; times are
of its processor.

The error of JPEG is told of the same videos, whose noise no camera has, of one of a picture with
the spectrum of photographs, and of real videos where they are given.

    python benchmarks/clips.py --video A.mp4 --video B.avi
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache import open_cache
from decode import BITS_PER_SECOND, make_video, medians_ms
from making import machine, make_cache, own_arrays, print_table, samples_table
from pipeline.clips import ClipDataset, DrawnViews, StoredViews, iterate
from pipeline.config import ClipFormat
from pipeline.jpeg import decode_frames, encode_frames, frame_bytes
from pipeline.models import model_entry
from pipeline.samples import Samples
from pipeline.video import open_video
from pipeline.views import ViewRule
from stages.stored_clips import as_stored, clip_fields, read_stored

STUDENT = "pytorchvideo/x3d_s"
SPEC = model_entry(STUDENT).clip
RULE = ViewRule(0, (0.4, 1.0), SPEC.span_sec, flip=False)
REFERENCE = "340×256"
WANTED: dict[ClipFormat, int] = {"jpeg": 5, "raw": 20}  # times the live decode of 340×256
GROUPS = (250, 12)  # frames from one key frame to the next
BATCH = 16
CHUNK_SAMPLES = 64  # a row of raw clips has 1.3 MB
OF_ERROR = 32  # clips of each video

Clips = NDArray[np.uint8]
Reader = Callable[[NDArray[np.int64]], Clips]


def live_reader(video: Path, count: int) -> Reader:
    """Read one view of each of `count` videos, all with the content of one."""
    folder = video.with_suffix("")  # no two samples have one path, so that none share a pass
    folder.mkdir()
    names = [f"{row}{video.suffix}" for row in range(count)]
    for name in names:
        (folder / name).symlink_to(video.resolve())
    table = samples_table(count).drop_columns("path").append_column("path", [names])
    samples = Samples("benchmark", {"action": list(map(str, range(400)))}, table)
    with open_video(video) as opened:
        choose = DrawnViews(RULE, (0,))
        records = [choose(samples.row(row), opened.info)[0].as_row() for row in range(count)]
    dataset = ClipDataset(folder, samples, [SPEC])

    def read(rows: NDArray[np.int64]) -> Clips:
        requests = [(row, StoredViews(records[row][None])) for row in rows.tolist()]
        (reads,) = iterate(dataset, [requests], 0)
        return np.concatenate([read.clips.clips[0] for read in reads if read.clips])

    return read


def stored_reader(path: Path, clips: Clips, wanted: ClipFormat) -> Reader:
    """Read clips out of a cache that is made of them."""
    (field,) = clip_fields([STUDENT], {}, wanted)
    writer = make_cache(path, samples=len(clips), fields=[field], chunk_samples=CHUNK_SAMPLES)
    for chunk in range(writer.num_chunks):
        samples = writer.sample_range(chunk)
        arrays = own_arrays(samples, 1)
        arrays[field.name] = as_stored(clips[samples.start : samples.stop], field)[:, None]
        writer.write_chunk(chunk, arrays)
    writer.close()
    cache = open_cache(path)
    return lambda rows: next(read_stored(cache, STUDENT, [(rows, np.zeros_like(rows))]))


def in_batches(read: Reader, count: int) -> Callable[[], None]:
    """Read the next random batch; it is kept until the one after is there, as in a training."""
    random = np.random.default_rng(0)
    kept: list[Clips] = []

    def call() -> None:
        kept[:] = [read(random.choice(count, min(BATCH, count), replace=False))]

    return call


def all_clips(read: Reader, count: int) -> Clips:
    """The clips of all samples."""
    rows = np.arange(count)
    return np.concatenate([read(rows[start : start + BATCH]) for start in range(0, count, BATCH)])


def photograph(size: tuple[int, int]) -> Callable[[int], NDArray[np.uint8]]:
    """A picture that drifts, its amplitude falling as 1/f, with little colour: frame by number."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal((4, height, width)))
    fields = np.fft.irfft2(white / frequency, s=(height, width))
    grey, *colours = fields / fields.std((1, 2), keepdims=True)
    picture = 120 + 50 * grey[..., None] + 12 * np.stack(colours, -1)
    whole = np.clip(picture, 0, 255).astype(np.uint8)
    return lambda index: np.roll(whole, (index, 2 * index), (0, 1))


def error_of(name: str, clips: Clips) -> list[str]:
    """One line: what JPEG makes of clips' frames."""
    frames = clips.reshape(-1, *clips.shape[2:])
    begun = time.process_time()
    files = encode_frames(frames, frame_bytes(SPEC.size))
    encode_ms = (time.process_time() - begun) * 1000 / len(clips)
    difference = decode_frames(files, SPEC.size).astype(np.float64) - frames
    square = (difference**2).mean((1, 2, 3))
    sizes = [len(file.tobytes().rstrip(b"\0")) for file in files]
    return [
        name,
        str(len(frames)),
        f"{np.mean(sizes):,.0f}",
        f"{np.max(sizes):,}",
        f"{np.abs(difference).mean():.2f}",
        f"{10 * np.log10(255**2 / square.mean()):.1f}",
        f"{10 * np.log10(255**2 / square.max()):.1f}",
        f"{encode_ms:.1f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of the made videos")
    parser.add_argument("--rows", type=int, default=512, help="of the caches")
    parser.add_argument("--repeats", type=int, default=5, help=f"batches of {BATCH} of each")
    parser.add_argument("--video", type=Path, action="append", default=[], help="a real one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dualkd-clips-") as temporary:
        folder = Path(temporary)
        print(f"making videos and caches of {options.rows} rows in {folder} …", flush=True)
        live = live_readers(folder, options.seconds, options.rows, options.video)
        references = [name for name in live if REFERENCE in name and "key frames" in name]
        clips = all_clips(live[references[0]], options.rows)
        stored = {kind: stored_reader(folder / kind, clips, kind) for kind in WANTED}
        all_clips(stored["jpeg"], options.rows)  # chunk files are checked at their first row
        if not np.array_equal(all_clips(stored["raw"], options.rows), clips):
            raise RuntimeError("raw clips are not those of the videos")
        path = folder / "photograph.mp4"
        size = next(iter(BITS_PER_SECOND))
        make_video(path, size=size, seconds=options.seconds, group=250, frame=photograph(size))
        some = min(OF_ERROR, options.rows)
        seen = {f"a photograph's spectrum, {REFERENCE}": live_reader(path, some)}
        seen |= {name: read for name, read in live.items() if "12 apart" not in name}
        errors = [error_of(name, all_clips(read, some)) for name, read in seen.items()]
        readers = live | {str(kind): read for kind, read in stored.items()}
        calls = [in_batches(read, options.rows) for read in readers.values()]
        times = medians_ms(calls, options.repeats)
    batch = min(BATCH, options.rows)
    clip_ms = {name: taken / batch for name, taken in zip(readers, times, strict=True)}
    print_speed(clip_ms, min(clip_ms[name] for name in references))
    print(f"\nJPEG, {frame_bytes(SPEC.size):,} bytes of room for a frame:\n")
    head = ["frames of", "frames", "bytes, mean", "most", "mean absolute error", "PSNR, dB"]
    print_table([*head, "of the worst frame", "encoding, ms per clip"], errors)


def live_readers(folder: Path, seconds: float, rows: int, real: list[Path]) -> dict[str, Reader]:
    """By name, the readers of made videos and of real ones."""
    readers = {}
    for size in BITS_PER_SECOND:
        for group in GROUPS:
            path = folder / f"{size[0]}-{group}.mp4"
            make_video(path, size=size, seconds=seconds, group=group)
            name = f"{size[0]}×{size[1]}, key frames {group} apart"
            readers[name] = live_reader(path, rows)
    for number, video in enumerate(real):
        path = folder / f"real-{number}{video.suffix}"
        path.symlink_to(video.resolve())
        with open_video(path) as opened:
            name = f"{video.name}, {opened.info.width}×{opened.info.height}"
        readers[name] = live_reader(path, rows)
    return readers


def print_speed(clip_ms: dict[str, float], reference: float) -> None:
    """The table and the requirements; the reference is the faster of the 340×256 videos."""
    print(f"\n{STUDENT}: {SPEC.frames} frames of {SPEC.size}×{SPEC.size}; one thread; {machine()}.")
    print(f"Median of batches of {BATCH}, ms of the processor.\n")
    lines = []
    for name, taken in clip_ms.items():
        kind = next((kind for kind in WANTED if kind == name), None)
        field = clip_fields([STUDENT], {}, kind)[0] if kind else None
        lines.append(
            [
                f"{name}, cached" if kind else f"decoded, {name}",
                f"{taken:.2f}",
                f"{1000 / taken:,.0f}",
                f"{reference / taken:.1f}",
                f"{field.row_bytes:,}" if field else "–",
            ]
        )
    head = ["", "ms per clip", "clips/s per core", f"times {REFERENCE} decoded", "bytes per view"]
    print_table(head, lines)
    print()
    for kind, least in WANTED.items():
        ratio = reference / clip_ms[kind]
        verdict = "met" if ratio >= least else "MISSED"
        print(f"- {REFERENCE} decoded / {kind}, at least {least}: {ratio:.1f}, {verdict}")


if __name__ == "__main__":
    main()
