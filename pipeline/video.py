"""Reading video: whatever a sample's path names, the frames on screen at the times asked for.

A path names a video file, or a folder of frames (or a tar of it) with their rate, `…?fps=59.94`.
PyAV brings its own FFmpeg.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from pipeline.frames_folder import FramesFolder, split_rate
from pipeline.video_file import VideoFile
from pipeline.video_interface import Frames, Video, VideoError, VideoInfo

__all__ = ["Frames", "Video", "VideoError", "VideoInfo", "decoder_version", "open_video"]


def decoder_version() -> str:
    """What decodes here: frames, and so the digests of a cache, can differ between versions."""
    codec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {codec}"


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video, or a folder of frames, to read stretches of it.

    Args:
        path: a video file; or a folder of frames, or a tar of one, followed by `?fps=` and their
            rate, a decimal number or a fraction such as `60000/1001`.

    Raises:
        VideoError: the file is missing, empty, no video, has no video stream or no duration, its
            first frame is damaged, or FFmpeg fails on it while it is open; or the frames of a
            folder are not numbered without a gap.
    """
    place, rate = split_rate(path)
    if rate is not None:
        with FramesFolder(path, place, rate) as folder:
            yield folder
        return
    try:
        file = VideoFile(path)
        try:
            yield file
        finally:
            file.close()
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
