"""A video file: one forward decode that jumps to key frames over what nobody needs.

Seeking changes no frame: those that a decode from the beginning would choose are chosen, by their
presentation stamps, with the same pixels. Tests hold it to that, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.video_container import (
    Orientation,
    describe,
    is_avi,
    is_mp4,
    keeps_stamps,
    open_container,
    start_sec,
    stated_duration,
)
from pipeline.video_interface import TOLERANCE_SEC, Video, VideoError

# A stream may end this much before its stated duration (rounding, a dropped last packet).
_MISSING_END_SEC = 0.5
# A jump costs as much as decoding some frames; it must save at least this much video.
_LEAST_JUMP_SEC = 1.0
# Where it is not known how far a jump would lead: more than most groups of pictures.
_LEAST_BLIND_JUMP_SEC = 10.0
# How much earlier the first retry of a jump that went wrong aims; each further one doubles it.
_STEP_BACK_SEC = 10.0
# From PyAV 17 on each conversion would otherwise start a pool of threads.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

_Presented = tuple[float, av.VideoFrame]  # seconds since the first frame, the frame
_Packets = Iterable["av.Packet[av.VideoStream]"]


class VideoFile(Video):
    """An open video file, its first frame decoded. Made by `pipeline.video.open_video`.

    Only what is read is checked for damage: what lies before the key frame from which a stretch is
    decoded, or behind its last frame, may be damaged without notice.

    Frames are turned upright as the display matrix says. Pixels that are not square are left so:
    the published pipelines of this field ignore the sample aspect ratio.
    """

    _container: av.container.InputContainer
    _stream: av.VideoStream
    _frames: Iterator[_Presented]  # those that follow `_current`
    _current: _Presented  # the latest decoded frame

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            VideoError: it is no readable video, or its first frame cannot be decoded.
        """
        self.path = path
        self._converter = VideoReformatter()
        self._first_sec = 0.0  # of the first frame, on the stream's clock
        self._reach_sec = 0.0  # to where the data have been read, on the stream's clock
        self._aim: float | None = None  # the time for which a jump was last decided upon
        self._sought = False
        self._container, self._stream = open_container(path)
        try:
            self._unit = float(self._stream.time_base or 0)
            self._seekable = keeps_stamps(self._container) and self._unit > 0
            self.info = describe(path, self._container, self._stream)
            self._begin()
        except BaseException:
            self.close()
            raise
        self._orientation = Orientation.of(self._current[1])
        if self._orientation.transposed:
            self.info = replace(self.info, width=self.info.height, height=self.info.width)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def shown_at(
        self, times_sec: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Pass over the video once, forward; see `Video.shown_at`.

        Decoding is in order, and jumps to a key frame where that saves more than a second of it.
        Only the frames that are given are converted to RGB, and decoding stops after the last.

        Raises:
            VideoError: the data are damaged between a key frame from which they are decoded and
                the last frame needed from there, or the stream ends well before its stated
                duration.
        """
        order = np.argsort(times_sec, kind="stable")
        due = times_sec[order] + TOLERANCE_SEC
        self._aim, done = None, 0
        while done < len(due):
            self._move_to(float(due[done]))
            frame, following = self._current[1], next(self._frames, None)
            if following is None:
                self._check_end(float(times_sec[order[-1]]))
                yield self._to_rgb(frame), order[done:]
                return
            shown = int(np.searchsorted(due, following[0]))  # those due before it is presented
            self._current = following
            if shown > done:
                yield self._to_rgb(frame), order[done:shown]
                done = shown

    # --- where to decode from ------------------------------------------------------------------

    def _begin(self) -> None:
        """Decode the first frame of a container that was just opened.

        Raises:
            VideoError: there is none.
        """
        self._frames = self._decode(self._container.demux(self._stream))
        first = next(self._frames, None)
        if first is None:
            raise VideoError(f"{self.path}: no frame can be decoded")
        self._current = first

    def _move_to(self, due_sec: float) -> None:
        """Jump to a key frame at or before a time, where it lies behind or far ahead."""
        at_sec = self._current[0]
        back = due_sec < at_sec and at_sec > 0
        if due_sec == self._aim or not (back or self._saves(at_sec, due_sec)):
            return
        self._aim = due_sec
        if not self._seek(due_sec):
            self._container.close()
            self._container, self._stream = open_container(self.path)
            self._begin()

    def _saves(self, at_sec: float, due_sec: float) -> bool:
        """Whether a jump from one time to another saves decoding."""
        if not self._seekable or due_sec - at_sec <= _LEAST_JUMP_SEC:
            return False
        key_sec = self._indexed_key(due_sec)
        if key_sec is None:
            return due_sec - at_sec > _LEAST_BLIND_JUMP_SEC
        return key_sec - at_sec > _LEAST_JUMP_SEC

    def _indexed_key(self, due_sec: float) -> float | None:
        """Seconds of the last key frame before a time by the container's index, if it is read.

        That of Matroska is read by the first seek. An index may hold stamps of decoding, a few
        frames early: good enough for deciding.
        """
        index = getattr(self._stream, "index_entries", None)  # newer than PyAV 14
        if index is None or not (self._sought or is_mp4(self._container)):
            return None
        found = index.search_timestamp(self._ticks(due_sec), backward=True)
        return None if found < 0 else index[found].timestamp * self._unit - self._first_sec

    def _seek(self, due_sec: float) -> bool:
        """Go to a key frame at or before a time; tell whether there is one to decode from.

        Where the demuxer lands too late, or where the picture does not come whole at once (as with
        gradual refresh), an earlier one is tried, and earlier ones yet.
        """
        step = 0.0
        while self._seekable and step < due_sec:
            found = self._from_key(due_sec - step, due_sec)
            if found is not None:
                self._current, self._frames = found
                return True
            step = max(_STEP_BACK_SEC, 2 * step)
        self._seekable = False  # from the beginning, from now on
        return False

    def _from_key(
        self, target_sec: float, due_sec: float
    ) -> tuple[_Presented, Iterator[_Presented]] | None:
        """The key frame where a seek lands, and the frames that follow it; None if unusable."""
        self._sought = True
        try:
            self._container.seek(self._ticks(target_sec), stream=self._stream)
            packets = iter(self._container.demux(self._stream))
            key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            if key is None or key.pts is None or self._seconds(key.pts) > due_sec:
                return None
            frames = self._decode(chain([key], packets), since=key.pts)
            first = next(frames, None)
        except (av.error.FFmpegError, VideoError):
            return None
        return None if first is None or first[1].pts != key.pts else (first, frames)

    def _ticks(self, seconds: float) -> int:
        return int((seconds + self._first_sec) / self._unit)

    def _seconds(self, ticks: int) -> float:
        return ticks * self._unit - self._first_sec

    # --- decoding ------------------------------------------------------------------------------

    def _decode(self, packets: _Packets, since: int | None = None) -> Iterator[_Presented]:
        """Yield frames in order of presentation.

        Args:
            packets: from the beginning, or from a key frame on.
            since: the key frame's stamp. Frames that are presented before it may need others that
                were not decoded: they are dropped, whatever they look like.

        Raises:
            VideoError: a packet or a frame is damaged.
        """
        step = 1.0 / self.info.frame_rate
        in_avi = is_avi(self._container)
        stamp: float | None = None
        presented = 0.0 if since is None else self._seconds(since)
        try:
            for packet in packets:
                self._note(packet)
                for frame in packet.decode():
                    if stamp is None and since is not None and (frame.pts or 0) < since:
                        continue
                    if frame.is_corrupt:
                        raise self._damaged(presented, "the picture is incomplete")
                    # AVI stores no presentation stamps, and with B-frames FFmpeg's guess at them
                    # goes back and forth; stamps of decoding count the frames as they come out.
                    ticks = frame.dts if in_avi else frame.pts
                    # Some frames have no stamp, such as the last ones of an AVI: the mean rate.
                    due = 0.0 if stamp is None else stamp + step
                    seconds = due if ticks is None else ticks * self._unit
                    if stamp is None and since is None:
                        self._first_sec = seconds
                    stamp = seconds
                    presented = seconds - self._first_sec
                    yield presented, frame
        except av.error.FFmpegError as error:
            raise self._damaged(presented, error.strerror) from error

    def _note(self, packet: av.Packet[av.VideoStream]) -> None:
        """Keep how far the data reach; refuse a packet that was cut off.

        Raises:
            VideoError: the packet is incomplete.
        """
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.is_corrupt:
            raise self._damaged(self._reach_sec - self._first_sec, "a packet is incomplete")
        if stamp is not None:
            self._reach_sec = max(self._reach_sec, (stamp + (packet.duration or 0)) * self._unit)

    def _damaged(self, after_sec: float, reason: str | None) -> VideoError:
        return VideoError(f"{self.path}: damaged after {max(after_sec, 0.0):.2f} s ({reason})")

    def _check_end(self, wanted_sec: float) -> None:
        """Tell a stream that was cut off from a short one, where it states its duration.

        Raises:
            VideoError: it was cut off before the wanted time.
        """
        stated = stated_duration(self._container, self._stream)
        if stated is None:
            return
        start = start_sec(self._stream)
        missing = min(self._first_sec + wanted_sec, start + stated) - self._reach_sec
        if missing > _MISSING_END_SEC:
            raise VideoError(
                f"{self.path}: ends at {self._reach_sec - start:.2f} s, "
                f"but states {stated:.2f} s (truncated?)"
            )

    def _to_rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(H, W, 3), upright, contiguous."""
        converted = self._converter.reformat(frame, format="rgb24", **_ONE_THREAD)
        return self._orientation.turn(converted.to_ndarray().astype(np.uint8, copy=False))
