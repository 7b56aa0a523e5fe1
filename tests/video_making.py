"""Tiny real videos for the tests, good and bad: every frame carries its number in its picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
_COLUMNS, _ROWS = 4, 2  # blocks of a picture, one bit of the frame's number each
_MILLISECOND = Fraction(1, 1000)
_AUDIO_RATE = 44100


def numbered_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: eight grey blocks, bright where a bit of the number is set."""
    bits = [(number >> bit) & 1 for bit in range(_COLUMNS * _ROWS)]
    blocks = np.where(np.reshape(bits, (_ROWS, _COLUMNS)), 200, 40)
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    grey = blocks[rows][:, columns].astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def frame_number(rgb: NDArray[np.uint8]) -> int:
    """Read the number back from the middles of the blocks."""
    height, width = rgb.shape[:2]
    rows = (np.arange(_ROWS) * 2 + 1) * height // (2 * _ROWS)
    columns = (np.arange(_COLUMNS) * 2 + 1) * width // (2 * _COLUMNS)
    bits = (rgb[rows][:, columns].mean(axis=-1) > 120).ravel()
    return int(sum(1 << bit for bit, is_set in enumerate(bits) if is_set))


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 50,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    b_frames: int = 0,
    stamps_ms: Sequence[int] | None = None,
    first_number: int = 0,
    noise: bool = False,
    faststart: bool = False,
    audio_sec: float = 0.0,
    title: str = "",
    x264: str = "",
) -> Path:
    """Encode numbered frames; the container follows from the file's name.

    Args:
        path: where to.
        codec: `libx264`, `mpeg4` or `mpeg2video`.
        frames: how many.
        rate: frames per second.
        size: width and height in pixels.
        b_frames: frames between two others that are predicted from both.
        stamps_ms: presentation times in milliseconds; None counts from 0 at the given rate.
        first_number: of the first frame.
        noise: adds noise, so that a packet is long enough to be cut in two.
        faststart: MP4 with its index before its data.
        audio_sec: adds silence of that many seconds.
        title: of the container.
        x264: parameters of libx264, `key=value` with colons between.

    Returns:
        The path.
    """
    random = np.random.default_rng(0)
    flags = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"bf": str(b_frames), "threads": "1"}
        if codec == "libx264":
            stream.options = {**stream.options, "b-adapt": "0"}  # B-frames wherever they may be
        if x264:
            stream.options = {**stream.options, "x264-params": x264}
        if stamps_ms is not None:
            stream.codec_context.time_base = _MILLISECOND
        sound = container.add_stream("aac", rate=_AUDIO_RATE) if audio_sec else None
        for index in range(frames):
            picture = numbered_frame(first_number + index, *size)
            if noise:
                picture += random.integers(0, 40, picture.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps_ms is not None:
                frame.pts, frame.time_base = stamps_ms[index], _MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _mux_silence(container, sound, audio_sec)
    return path


def _mux_silence(
    container: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    samples = 1024
    for index in range(int(seconds * _AUDIO_RATE / samples)):
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=samples)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = _AUDIO_RATE, index * samples
        frame.time_base = Fraction(1, _AUDIO_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio(path: Path, *, cover: bool = False) -> Path:
    """Write two seconds of silence in MP4; a cover picture is a video stream to FFmpeg."""
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=_AUDIO_RATE)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        _mux_silence(container, sound, 2.0)
        if cover:
            container.mux(picture.encode(av.VideoFrame(WIDTH, HEIGHT, "yuvj420p")))
            container.mux(picture.encode(None))
    return path


def cut_off(path: Path, share: float) -> Path:
    """Keep only so much of what follows an MP4's `mdat` or an AVI's `movi`, in place."""
    content = path.read_bytes()
    data = max(content.find(b"mdat"), content.find(b"movi"))
    path.write_bytes(content[: data + round(share * (len(content) - data))])
    return path


def cut_before(path: Path, packet: int) -> Path:
    """Keep only what precedes a packet, in place."""
    path.write_bytes(path.read_bytes()[: _packets(path)[packet][0]])
    return path


def spoil(path: Path, packet: int, *, begin: float) -> Path:
    """Overwrite a packet with noise from that share of its length on, in place."""
    content = bytearray(path.read_bytes())
    start, size = _packets(path)[packet]
    kept = round(begin * size)
    content[start + kept : start + size] = np.random.default_rng(1).bytes(size - kept)
    path.write_bytes(content)
    return path


def _packets(path: Path) -> list[tuple[int, int]]:
    """Where each packet of a video begins in its file, and its length."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]


def erase_duration(path: Path) -> Path:
    """Set every duration that an MP4 of one frame states to 0, in place."""
    content = bytearray(path.read_bytes())
    for box, offset in {b"mvhd": 20, b"tkhd": 24, b"mdhd": 20, b"stts": 16}.items():
        start = content.index(box) + offset
        content[start : start + 4] = bytes(4)
    path.write_bytes(content)
    return path


def patch(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes everywhere in a file, in place; it keeps its length."""
    content = path.read_bytes()
    if old not in content or len(old) != len(new):
        raise ValueError(f"cannot replace {old!r} by {new!r} in {path}")
    path.write_bytes(content.replace(old, new))
    return path
