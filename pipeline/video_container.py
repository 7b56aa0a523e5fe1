"""What a container says of its video: which stream, how long, how large, which way up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from pipeline.video_interface import VideoError, VideoInfo

_SHOWN_TEXT = 60  # bytes of a text file in a message
_PICTURES = ("gif", "image2", "apng", "webp_anim")
_MATROSKA_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


def open_container(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file for decoding on one thread; the caller closes the container.

    Raises:
        VideoError: the file is missing, empty, no video, or has no video stream.
    """
    try:
        if path.is_dir():
            raise VideoError(
                f"{path}: is a folder; a folder of frames needs their rate, as in {path}?fps=59.94"
            )
        if not path.is_file():
            raise VideoError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        container = _open(path)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path}: not a readable video, or cut off before its index ({error.strerror}"
            f"{_begin_of_text(path)})"
        ) from error
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    try:
        stream = _video_stream(path, container)
    except VideoError:
        container.close()
        raise
    # One thread: there are many decoding processes, and frame threads add latency and memory.
    stream.codec_context.thread_count = 1
    return container, stream


def _open(path: Path) -> av.container.InputContainer:
    url = f"file:{path}"  # else a name as a:b.mp4 would be a protocol and what it leads to
    try:
        return av.open(url)
    except UnicodeDecodeError:
        # A title in another encoding; PyAV 19 has no such error and no such argument.
        return av.open(url, metadata_errors="replace")


def _begin_of_text(path: Path) -> str:
    """The first words of a file that is text, such as a page that was saved for a video."""
    with path.open("rb") as file:
        begin = file.read(_SHOWN_TEXT).decode("ascii", "replace")
    words = " ".join(begin.split())
    return f"; it is text: {words!r}" if words.isprintable() and words.isascii() else ""


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


def describe(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> VideoInfo:
    """Size (not yet turned upright), duration and rate.

    Raises:
        VideoError: there is no duration or no size.
    """
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    duration = stated_duration(container, stream)
    if duration is None:  # then the container's, though another stream may be longer
        duration = (container.duration or 0) / av.time_base - start_sec(stream)
    if duration <= 0:
        raise VideoError(f"{path}: has no duration (0 s), {_why_none(container)}")
    if not stream.width or not stream.height:
        raise VideoError(f"{path}: the video stream has no picture size")
    return VideoInfo(
        width=stream.width,
        height=stream.height,
        duration_sec=duration,
        frame_rate=float(rate) if rate else 30.0,
    )


def _why_none(container: av.container.InputContainer) -> str:
    name = container.format.name
    if name in _PICTURES or name.endswith("_pipe"):
        return "it is a single picture"
    return f"FFmpeg takes it for {container.format.long_name} ({name})"


def stated_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds from the stream's start to its end as it states them itself, or None."""
    if stream.duration is not None and stream.time_base:
        # Of a truncated AVI FFmpeg shortens the duration, but not the count of frames.
        counted = stream.frames if is_avi(container) else 0
        return float(max(stream.duration, counted) * stream.time_base)
    tag = _MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
    if tag is None:
        return None
    hours, minutes, seconds = (float(part) for part in tag.groups())
    return 3600 * hours + 60 * minutes + seconds - start_sec(stream)  # the tag holds the end


def start_sec(stream: av.VideoStream) -> float:
    """Seconds on the stream's clock at which it starts."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def is_avi(container: av.container.InputContainer) -> bool:
    """Whether its stamps count frames as they come out of the decoder."""
    return container.format.name == "avi"


def is_mp4(container: av.container.InputContainer) -> bool:
    """MP4, MOV and their kin, whose index lists every frame."""
    return container.format.name.startswith("mov,")


def keeps_stamps(container: av.container.InputContainer) -> bool:
    """Whether every frame's presentation stamp stands in the file, and key frames are marked.

    Only there does a frame that is reached by seeking have the stamp that it has otherwise. AVI
    counts frames; transport and program streams may begin to count anew in the middle.
    """
    return is_mp4(container) or container.format.name.startswith("matroska,")


@dataclass(frozen=True)
class Orientation:
    """How stored pictures are turned to stand upright.

    Attributes:
        transposed: rows become columns, first.
        upside_down: rows are reversed.
        mirrored: columns are reversed.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """What the display matrix of a frame says, as players and ffmpeg's autorotation do it.

        The matrix sends a stored place (p, q) to (a p + c q, b p + d q) on screen. Only quarter
        turns and mirrorings are followed; anything else, such as a slant, is left as stored.
        """
        found: Any = frame.side_data.get("DISPLAYMATRIX")
        if found is None:
            return cls()
        a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(found), np.int32))
        if a and d and not b and not c:
            return cls(upside_down=d < 0, mirrored=a < 0)
        if b and c and not a and not d:
            return cls(transposed=True, upside_down=b < 0, mirrored=c < 0)
        return cls()

    def turn(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as stored → (H', W', 3) upright, contiguous."""
        if self.transposed:
            rgb = rgb.swapaxes(0, 1)
        if self.upside_down:
            rgb = rgb[::-1]
        if self.mirrored:
            rgb = rgb[:, ::-1]
        return np.ascontiguousarray(rgb)
