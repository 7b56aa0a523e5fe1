"""From video files to clips: more views of one decode; many stretches of one long video.

The videos are made here: a drifting picture with noise, H.264 at 30 fps with B-frames, at the rates
of bits that such videos have on the web; `--video` adds real ones. The clips are those of both
published teachers: MViTv2-S 16×4, X3D-M 16×5. One thread; times are of its processor, so that other
work on the machine changes them little.

    python benchmarks/decode.py --video A.mp4
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from making import machine, print_table
from pipeline.clips import DrawnViews, StoredViews, read_clips, read_together
from pipeline.samples import Sample
from pipeline.video import open_video
from pipeline.video_file import VideoFile
from pipeline.views import ClipSpec, View, ViewRule, cut_clip

# Of torchvision/mvit_v2_s and pytorchvideo/x3d_m: to import them takes seconds.
SPECS = (
    ClipSpec(frames=16, stride=4, size=224),
    ClipSpec(frames=16, stride=5, size=224),
)
RULE = ViewRule(0, (0.4, 1.0), max(spec.span_sec for spec in SPECS), flip=False)
RATE = 30
BITS_PER_SECOND = {(340, 256): 500_000, (1280, 720): 2_500_000}
MOST = 1.3  # four views against one of the same stretch


def noisy_tiles(size: tuple[int, int]) -> Callable[[int], NDArray[np.uint8]]:
    """Frame by number: tiles that drift, so that frames predict each other, and noise."""
    width, height = size
    random = np.random.default_rng(0)
    coarse = random.integers(20, 220, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    backdrop = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    noise = random.integers(0, 24, (16, height, width, 3), dtype=np.uint8)

    def frame(index: int) -> NDArray[np.uint8]:
        drifted = np.roll(backdrop, (index, 2 * index), (0, 1))
        picture: NDArray[np.uint8] = drifted[:height, :width] + noise[index % len(noise)]
        return picture

    return frame


def make_video(
    path: Path,
    *,
    size: tuple[int, int],
    seconds: float,
    group: int,
    frame: Callable[[int], NDArray[np.uint8]] | None = None,
) -> Path:
    """Encode frames, by default those of `noisy_tiles`."""
    frame = frame or noisy_tiles(size)
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = BITS_PER_SECOND[size]
        stream.options = {"g": str(group), "keyint_min": str(group), "threads": "1"}
        for index in range(round(seconds * RATE)):
            picture = av.VideoFrame.from_ndarray(frame(index), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def medians_ms(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each call; they take turns, after a turn that is not timed."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, of_call in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if turn:
                of_call.append((time.process_time() - start) * 1000)
    return [statistics.median(of_call) for of_call in times]


@contextmanager
def without_seeking() -> Iterator[None]:
    """Decode from the beginning, as long as it is entered."""
    saves = VideoFile._saves
    VideoFile._saves = lambda *_times: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        VideoFile._saves = saves  # type: ignore[method-assign]


def decode_until(path: Path, end_sec: float) -> None:
    """PyAV alone, nothing converted: the least that any reader takes."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if (frame.time or 0.0) > end_sec:
                break


def measure_views(path: Path, repeats: int) -> list[str]:
    """One line: the same video read with one view, and with four."""
    sample = Sample("video", path.name, "train", {})
    with open_video(path) as video:
        drawn = DrawnViews(RULE, (0, 1, 2, 3))(sample, video.info)
        frames = video.frames_at(np.arange(4) / RATE).rgb
    latest = max(drawn, key=lambda view: view.centre_sec)

    def read(*views: View) -> Callable[[], object]:
        choose = StoredViews(np.stack([view.as_row() for view in views]))
        return lambda: read_clips(path.parent, sample, choose, SPECS)

    def first_of(*views: View) -> Callable[[], object]:
        calls = [read(view) for view in views]
        return lambda: [call() for call in calls]

    calls = [
        lambda: decode_until(path, latest.centre_sec + RULE.span_sec / 2),
        read(latest),
        read(*drawn),
    ]
    with without_seeking():
        plain, one, four = medians_ms(calls, repeats)
    alone, together, cut = medians_ms(
        [
            first_of(*drawn),
            read(*drawn),
            lambda: [cut_clip(frames, drawn[0], spec) for spec in SPECS],
        ],
        repeats,
    )
    return [
        f"{plain:.0f}",
        f"{one:.0f}",
        f"{four:.0f}",
        f"{four / one:.2f}",
        f"{alone / len(drawn):.0f}",
        f"{together:.0f}",
        f"{together * len(drawn) / alone:.2f}",
        f"{len(drawn) * len(SPECS) * 1000 / together:.0f}",
        f"{cut / len(frames) / len(SPECS):.2f}",
    ]


def measure_segments(folder: Path, minutes: float, count: int, group: int) -> list[list[str]]:
    """Lines: stretches of one long video, one by one and together."""
    length = minutes * 60
    path = make_video(folder / "long.mp4", size=(340, 256), seconds=length, group=group)
    starts = np.random.default_rng(0).permutation(count) * length / count
    choose = DrawnViews(RULE, (0,))
    wanted = [
        (Sample(f"{start}", path.name, "train", {}, start, start + length / count / 2), choose)
        for start in starts.tolist()
    ]

    def one_by_one() -> list[object]:
        return [read_clips(folder, sample, choose, SPECS) for sample, choose in wanted]

    def seconds(call: Callable[[], object]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    with without_seeking():
        reference = seconds(one_by_one)
        in_one_decode = seconds(lambda: read_together(folder, wanted, SPECS))
    ways = {
        "one by one, each from the beginning": reference,
        "in one pass, nothing sought": in_one_decode,
        "one by one, with seeking": seconds(one_by_one),
        "in one pass, with seeking (what a batch does)": seconds(
            lambda: read_together(folder, wanted, SPECS)
        ),
    }
    return [
        [way, f"{taken:.2f}", f"{1000 * taken / count:.0f}", f"{reference / taken:.1f}"]
        for way, taken in ways.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the short videos")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the long video")
    parser.add_argument("--stretches", type=int, default=20, help="of the long video")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing of a short video")
    parser.add_argument("--video", type=Path, action="append", default=[], help="a real one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in BITS_PER_SECOND:
            for group in (250, 12):
                path = folder / f"{size[0]}-{group}.mp4"
                make_video(path, size=size, seconds=options.seconds, group=group)
                rate = path.stat().st_size * 8 / options.seconds / 1000
                line = measure_views(path, options.repeats)
                ratios.append(float(line[3]))
                name = f"{size[0]}×{size[1]}, key frames {group} apart, {rate:.0f} kbit/s"
                rows.append([name, *line])
        for path in options.video:
            line = measure_views(path, options.repeats)
            ratios.append(float(line[3]))
            with open_video(path) as video:
                info = video.info
            rows.append(
                [f"{path.name}, {info.width}×{info.height}, {info.duration_sec:.0f} s", *line]
            )
        segments = measure_segments(folder, options.minutes, options.stretches, group=250)
    print(f"{options.seconds:.0f} s at {RATE} fps; one process, one thread; {machine()}.")
    print(f"{len(SPECS)} clips a view, {sum(spec.frames for spec in SPECS)} frames. Median ms.\n")
    head = ["", "decode alone", "one view", "four views", "ratio", "one view, seeking"]
    head += ["four views, seeking", "ratio", "clips/s", "cut a frame"]
    print_table(head, rows)
    print(f"\n- four views / one view of the same stretch, at most {MOST}:")
    for (name, *_), ratio in zip(rows, ratios, strict=True):
        print(f"  - {name}: {ratio}, {'met' if ratio <= MOST else 'MISSED'}")
    print(
        f"\n{options.stretches} stretches of a video of {options.minutes:.1f} minutes, 340×256:\n"
    )
    print_table(["", "s", "ms per stretch", "times faster"], segments)


if __name__ == "__main__":
    main()
