"""Reading video: one sequential decode, the frames on screen at the times asked for.

PyAV brings its own FFmpeg. Time 0 is the presentation of a video's first frame, so containers
whose time stamps start elsewhere behave alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

# Containers store time stamps as integers in units such as 1/12800 s: a frame due at 1.0 may read
# as 0.99999.
_TOLERANCE_SEC = 1e-4
# A stream may end this much before its stated duration (rounding, a dropped last packet).
_MISSING_END_SEC = 0.5
_MATROSKA_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


def decoder_version() -> str:
    """What decodes here: frames, and so the digests of a cache, can differ between versions."""
    codec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {codec}"


class VideoError(Exception):
    """A video cannot be read; the message says which and why."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says of its first video stream.

    Attributes:
        width: pixels, as decoded.
        height: pixels, as decoded.
        duration_sec: seconds, from the first frame's presentation to the end of the last.
        frame_rate: mean frames per second.
    """

    width: int
    height: int
    duration_sec: float
    frame_rate: float


@dataclass(frozen=True)
class Frames:
    """Decoded frames and which of them is on screen at each time that was asked for.

    Attributes:
        rgb: (U, H, W, 3) uint8, every frame that was needed, once, in order of presentation.
        index: (N,) int64, for each asked time the row of `rgb`.
    """

    rgb: NDArray[np.uint8]
    index: NDArray[np.int64]


class Video:
    """An open video. Made by `open_video`."""

    def __init__(
        self, path: Path, container: av.container.InputContainer, stream: av.VideoStream
    ) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._first_sec = 0.0  # of the first frame, on the stream's clock
        self._reach_sec = 0.0  # to where the data have been read, on the stream's clock
        self.info = _describe(path, container, stream)

    def frames_at(self, times_sec: NDArray[np.float64]) -> Frames:
        """Decode once, in order, and keep the frames on screen at the given times.

        The frame on screen at t is the last one presented at or before t. Before the first frame
        it is the first, after the last it is the last: edge frames repeat. Only the frames that
        are kept are converted to RGB, and decoding stops after the last of them. The file is read
        through, so an open video answers once.

        Args:
            times_sec: (N,) seconds since the first frame, in any order; N > 0.

        Raises:
            VideoError: no frame can be decoded, the data are damaged before the last needed
                frame, or the stream ends well before its stated duration.
        """
        order = np.argsort(times_sec, kind="stable")
        index = np.empty(len(times_sec), dtype=np.int64)
        kept: list[NDArray[np.uint8]] = []
        frame: av.VideoFrame | None = None
        pending = 0  # position in `order` of the next time without a frame
        for presented, following in self._decode():
            before = pending
            while (
                frame is not None
                and pending < len(order)
                and times_sec[order[pending]] + _TOLERANCE_SEC < presented
            ):
                index[order[pending]] = len(kept)
                pending += 1
            if frame is not None and pending > before:
                kept.append(_to_rgb(frame))
            if pending == len(order):
                break
            frame = following
        if frame is None:
            raise VideoError(f"{self._path}: no frame can be decoded")
        if pending < len(order):
            self._check_end(float(times_sec[order[-1]]))
            index[order[pending:]] = len(kept)
            kept.append(_to_rgb(frame))
        if any(rgb.shape != kept[0].shape for rgb in kept):
            raise VideoError(f"{self._path}: the size of the picture changes within the video")
        return Frames(rgb=np.stack(kept), index=index)

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (seconds since the first frame, frame) in order of presentation."""
        unit = float(self._stream.time_base or 0)
        step = 1.0 / self.info.frame_rate
        in_avi = _is_avi(self._container)
        stamp: float | None = None
        presented = 0.0
        try:
            for packet in self._container.demux(self._stream):
                self._note(packet, unit)
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._damaged(presented, "the picture is incomplete")
                    # AVI stores no presentation stamps, and with B-frames FFmpeg's guess at them
                    # goes back and forth; stamps of decoding count the frames as they come out.
                    ticks = frame.dts if in_avi else frame.pts
                    # Some frames have no stamp, such as the last ones of an AVI: the mean rate.
                    due = 0.0 if stamp is None else stamp + step
                    seconds = due if ticks is None else ticks * unit
                    if stamp is None:
                        self._first_sec = seconds
                    stamp = seconds
                    presented = seconds - self._first_sec
                    yield presented, frame
        except av.error.FFmpegError as error:
            raise self._damaged(presented, error.strerror) from error

    def _note(self, packet: av.Packet[av.VideoStream], unit: float) -> None:
        """Keep how far the data reach; refuse a packet that was cut off.

        Raises:
            VideoError: the packet is incomplete.
        """
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.is_corrupt:
            raise self._damaged(self._reach_sec - self._first_sec, "a packet is incomplete")
        if stamp is not None:
            self._reach_sec = max(self._reach_sec, (stamp + (packet.duration or 0)) * unit)

    def _damaged(self, after_sec: float, reason: str | None) -> VideoError:
        return VideoError(f"{self._path}: damaged after {max(after_sec, 0.0):.2f} s ({reason})")

    def _check_end(self, wanted_sec: float) -> None:
        """Tell a stream that was cut off from a short one, where it states its duration.

        Raises:
            VideoError: it was cut off before the wanted time.
        """
        stated = _stated_duration(self._container, self._stream)
        if stated is None:
            return
        start = _start(self._stream)
        missing = min(self._first_sec + wanted_sec, start + stated) - self._reach_sec
        if missing > _MISSING_END_SEC:
            raise VideoError(
                f"{self._path}: ends at {self._reach_sec - start:.2f} s, "
                f"but states {stated:.2f} s (truncated?)"
            )


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video for one sequential decode on one thread.

    Raises:
        VideoError: the file is missing, empty, no video, has no video stream or no duration, or
            FFmpeg fails on it while it is open.
    """
    try:
        if not path.is_file():
            raise VideoError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        container = _open(path)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path}: not a readable video, or cut off before its index ({error.strerror})"
        ) from error
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    with container:
        stream = _video_stream(path, container)
        # One thread: there are many decoding processes, and frame threads add latency and memory.
        stream.codec_context.thread_count = 1
        try:
            yield Video(path, container, stream)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror})") from error


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except UnicodeDecodeError:
        # A title in another encoding; PyAV 19 has no such error and no such argument.
        return av.open(str(path), metadata_errors="replace")


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures: an album's cover is a video stream to FFmpeg.

    Raises:
        VideoError: there is none, or FFmpeg has no decoder for it.
    """
    covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
    videos = [stream for stream in container.streams.video if stream not in covers]
    if not videos:
        others = {stream.type for stream in container.streams if stream not in covers}
        kinds = ", ".join(sorted(others | ({"a cover picture"} if covers else set()))) or "nothing"
        raise VideoError(f"{path}: has no video stream (it holds {kinds})")
    if videos[0].codec_context is None:
        raise VideoError(f"{path}: FFmpeg has no decoder for its video stream")
    return videos[0]


def _describe(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> VideoInfo:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    duration = _stated_duration(container, stream)
    if duration is None:  # then the container's, though another stream may be longer
        duration = (container.duration or 0) / av.time_base - _start(stream)
    if duration <= 0:
        raise VideoError(f"{path}: has no duration (0 s)")
    if not stream.width or not stream.height:
        raise VideoError(f"{path}: the video stream has no picture size")
    return VideoInfo(
        width=stream.width,
        height=stream.height,
        duration_sec=duration,
        frame_rate=float(rate) if rate else 30.0,
    )


def _stated_duration(
    container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
    """Seconds from the stream's start to its end as it states them itself, or None."""
    if stream.duration is not None and stream.time_base:
        # Of a truncated AVI FFmpeg shortens the duration, but not the count of frames.
        counted = stream.frames if _is_avi(container) else 0
        return float(max(stream.duration, counted) * stream.time_base)
    tag = _MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
    if tag is None:
        return None
    hours, minutes, seconds = (float(part) for part in tag.groups())
    return 3600 * hours + 60 * minutes + seconds - _start(stream)  # the tag holds the end


def _start(stream: av.VideoStream) -> float:
    """Seconds on the stream's clock at which it starts."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _is_avi(container: av.container.InputContainer) -> bool:
    return container.format.name == "avi"


def _to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
