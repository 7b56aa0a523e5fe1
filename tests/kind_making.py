"""Videos of every kind that people have: one picture of four colours, computed by hand, and broken.

The planes are filled by the formulas of ITU-R BT.601 and BT.709, so that what is read back can be
compared with the colours themselves, not with what FFmpeg makes of them.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

import video_making as making

# Top left, top right; bottom left, bottom right.
COLOURS = np.array(
    [[[200, 40, 40], [40, 180, 60]], [[50, 60, 210], [180, 180, 180]]], dtype=np.float64
)
RATE = 10
_LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}  # the shares of red and of blue
_QUICK: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "10"},
    "libx264rgb": {"preset": "ultrafast", "crf": "10"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "2M"},
    "mpeg4": {"b": "2M"},
    "mpeg2video": {"b": "2M"},
}


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        codec: FFmpeg's encoder.
        pix_fmt: of the stored pictures.
        size: width and height in pixels.
        frames: how many.
        stamps: presentation times in units of 1/`RATE` s; None counts from 0.
        matrix: by which RGB becomes luma and chroma.
        full: luma and chroma from 0 to 255.
        tagged: the file says which matrix and range it has.
        options: of the encoder.
    """

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    frames: int = 6
    stamps: tuple[int, ...] | None = None
    matrix: str = "601"
    full: bool = False
    tagged: bool = False
    options: dict[str, str] = {}  # noqa: RUF012 (never changed)


# By the name of the file; what is special stands first.
KINDS: dict[str, Kind] = {
    "plain.mp4": Kind(),
    "yuvj420p.mp4": Kind(pix_fmt="yuvj420p"),
    "yuv422p.mp4": Kind(pix_fmt="yuv422p"),
    "yuv444p.mp4": Kind(pix_fmt="yuv444p"),
    "ten_bits.mp4": Kind(pix_fmt="yuv420p10le"),
    "ten_bits_422.mkv": Kind(pix_fmt="yuv422p10le"),
    "gray.mp4": Kind(pix_fmt="gray"),
    "rgb.mp4": Kind("libx264rgb", "rgb24"),
    "full_range.mp4": Kind(full=True, tagged=True),
    "bt709.mp4": Kind(matrix="709", tagged=True),
    "hevc.mp4": Kind("libx265"),
    "hevc_ten_bits.mp4": Kind("libx265", "yuv420p10le"),
    "hevc_twelve_bits.mkv": Kind("libx265", "yuv444p12le"),
    "hevc_gbrp.mp4": Kind("libx265", "gbrp"),
    "av1.mp4": Kind("libsvtav1"),
    "av1_ten_bits.webm": Kind("libsvtav1", "yuv420p10le"),
    "vp9.webm": Kind("libvpx-vp9"),
    "vp9_alpha.webm": Kind("libvpx-vp9", "yuva420p"),
    "vp8.webm": Kind("libvpx"),
    "mpeg4.avi": Kind("mpeg4"),
    "mjpeg.avi": Kind("mjpeg", "yuvj420p"),
    "prores.mov": Kind("prores", "yuv422p10le"),
    "animation.mov": Kind("qtrle", "rgb24"),
    "ffv1.mkv": Kind("ffv1", "gbrp10le"),
    "odd.mp4": Kind(pix_fmt="yuv444p", size=(65, 49)),
    "odd.webm": Kind("libvpx-vp9", size=(65, 49)),
    "portrait.mp4": Kind(size=(36, 64)),
    "wide.mp4": Kind(size=(400, 4)),
    "column.webm": Kind("libvpx-vp9", "yuv444p", size=(1, 48)),
    "row.webm": Kind("libvpx-vp9", "yuv444p", size=(48, 1)),
    "interlaced.mp4": Kind(options={"flags": "+ildct+ilme", "x264-params": "tff=1"}),
    "interlaced.ts": Kind("mpeg2video", options={"flags": "+ildct+ilme"}, frames=25),
    "one_frame.mp4": Kind(frames=1),
    "one_frame.webm": Kind("libvpx-vp9", frames=1),
    "variable_rate.mp4": Kind(stamps=(0, 1, 2, 9, 10, 25)),
    "variable_rate.mkv": Kind(stamps=(0, 1, 2, 9, 10, 25)),
    "late_start.mp4": Kind(stamps=(20, 21, 22, 23, 24, 25)),
    "late_start.ts": Kind(stamps=(20, 21, 22, 23, 24, 25)),
}
TURNED = "turned.mp4"  # a quarter clockwise, by its display matrix
CUT = "cut.mp4"  # a good beginning: what is wrong lies behind the first second

# What cannot be read; by the name of the file, how it is made and why not.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.mp4": (Path.touch, r"the file is empty \(0 bytes\)"),
    "page.mp4": (
        lambda path: path.write_text("<!doctype html>\n<title>404 Not Found</title>"),
        r"not a readable video.*it is text: '<!doctype html> <title>404 Not Found</title>'",
    ),
    "pointer.mkv": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        r"not a readable video.*it is text: 'version https://git-lfs",
    ),
    "zeros.avi": (lambda path: path.write_bytes(bytes(5000)), "not a readable video"),
    "picture.mp4": (
        lambda path: Image.new("RGB", (64, 48)).save(path, "PNG"),
        r"has no duration \(0 s\), it is a single picture",
    ),
    "photo.mov": (
        lambda path: Image.new("RGB", (64, 48)).save(path, "JPEG"),
        r"has no duration \(0 s\), it is a single picture",
    ),
    "subtitles.mp4": (
        lambda path: path.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n"),
        r"has no video stream \(it holds subtitle\)",
    ),
    "sound.mp4": (making.write_audio, r"has no video stream \(it holds audio\)"),
    "cover.mp4": (
        lambda path: making.write_audio(path, cover=True),
        r"has no video stream \(it holds a cover picture, audio\)",
    ),
    "raw.mp4": (
        lambda path: write_kind(path.with_name(".raw.h264"), Kind()).rename(path),
        r"has no duration \(0 s\), FFmpeg takes it for raw H.264 video \(h264\)",
    ),
    "no_index.mp4": (
        lambda path: making.cut_off(making.write_video(path, noise=True), 0.5),
        "not a readable video, or cut off before its index",
    ),
    "codec.mp4": (
        lambda path: making.patch(making.write_video(path), b"avc1\x00", b"qqqq\x00"),
        "FFmpeg has no decoder for its video stream",
    ),
    "spoilt.mp4": (
        lambda path: making.spoil(making.write_video(path, noise=True), 0, begin=0.3),
        r"damaged after 0\.00 s",
    ),
}


def picture(kind: Kind) -> NDArray[np.float64]:
    """(H, W, 3), the RGB that a video of this kind shows, the same in every frame."""
    width, height = kind.size
    blocks = COLOURS
    if kind.pix_fmt.startswith("gray"):
        blocks = np.repeat(_luma(COLOURS, kind.matrix)[..., None], 3, axis=-1)
    return blocks[np.arange(height) * 2 // height][:, np.arange(width) * 2 // width]


def difference(found: NDArray[np.uint8], expected: NDArray[np.float64]) -> float:
    """How far two pictures are apart, in levels of 256.

    The greatest of the medians over the four quarters and three colours: pixels at the edges of the
    quarters, where subsampled colour is mixed, do not count.
    """
    height, width = expected.shape[:2]
    worst = []
    for rows in (slice(0, max(height // 2, 1)), slice(height // 2, None)):
        for columns in (slice(0, max(width // 2, 1)), slice(width // 2, None)):
            both = [each[rows, columns].astype(np.float64) for each in (found, expected)]
            worst.append(np.abs(np.median(both[0] - both[1], axis=(0, 1))).max())
    return float(max(worst))


def write_kind(path: Path, kind: Kind) -> Path:
    """Encode a video; the container follows from the file's name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=RATE if kind.codec != "mpeg2video" else 25)
        (stream.width, stream.height), stream.pix_fmt = kind.size, kind.pix_fmt
        stream.options = {"threads": "1", **_QUICK.get(kind.codec, {}), **kind.options}
        context = stream.codec_context
        if kind.tagged:
            context.colorspace = Colorspace.ITU709 if kind.matrix == "709" else Colorspace.ITU601
            context.color_range = ColorRange.JPEG if kind.full else ColorRange.MPEG
        for index in range(kind.frames):
            frame = _frame(kind)
            if kind.tagged:
                frame.colorspace, frame.color_range = context.colorspace, context.color_range
            if kind.codec != "mpeg2video":
                frame.pts = kind.stamps[index] if kind.stamps else index
                frame.time_base = Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _frame(kind: Kind) -> av.VideoFrame:
    rgb = picture(kind)
    if kind.pix_fmt == "rgb24":
        return av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
    frame = av.VideoFrame(*kind.size, kind.pix_fmt)
    depth = frame.format.components[0].bits
    if kind.pix_fmt.startswith("gbrp"):
        channels = [rgb[..., at] * 2 ** (depth - 8) for at in (1, 2, 0)]
    else:
        channels = _yuv(rgb, kind, depth)
    for plane, channel in zip(frame.planes, channels, strict=False):
        # Colour is stored for every second column and row, or for all.
        across, down = (-(-side // own) for side, own in zip(kind.size, _shape(plane), strict=True))
        stored = np.rint(channel[::down, ::across])
        kind_of_number = np.uint16 if depth > 8 else np.uint8
        line = plane.line_size // np.dtype(kind_of_number).itemsize
        lines = np.zeros((plane.height, line), kind_of_number)
        lines[: stored.shape[0], : stored.shape[1]] = stored
        plane.update(lines.tobytes())
    return frame


def _shape(plane: av.video.plane.VideoPlane) -> tuple[int, int]:
    return plane.width, plane.height


def _luma(rgb: NDArray[np.float64], matrix: str) -> NDArray[np.float64]:
    red, blue = _LUMA[matrix]
    return rgb @ np.array([red, 1 - red - blue, blue])


def _yuv(rgb: NDArray[np.float64], kind: Kind, depth: int) -> list[NDArray[np.float64]]:
    """Luma, both colour differences and an opaque alpha, by the definition of the matrices."""
    red, blue = _LUMA[kind.matrix]
    luma = _luma(rgb, kind.matrix) / 255
    differences = [
        (rgb[..., at] / 255 - luma) / (2 * (1 - share)) for at, share in ((2, blue), (0, red))
    ]
    if kind.full or kind.pix_fmt.startswith("yuvj"):
        planes = [luma * 255, *(128 + 255 * each for each in differences)]
    else:
        planes = [16 + 219 * luma, *(128 + 224 * each for each in differences)]
    return [plane * 2 ** (depth - 8) for plane in [*planes, np.full(luma.shape, 255.0)]]


def put_kinds(root: Path) -> Path:
    """Every kind, good and broken, and the turned and the cut one, in one folder; made once."""
    root.mkdir(parents=True)
    for path in _made().iterdir():
        shutil.copy(path, root)
    return root


@cache
def _made() -> Path:
    folder = Path(mkdtemp(prefix="dualkd-kinds-"))
    for name, kind in KINDS.items():
        write_kind(folder / name, kind)
    content = bytearray((folder / "plain.mp4").read_bytes())
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, *matrix)
    (folder / TURNED).write_bytes(content)
    making.cut_off(making.write_video(folder / CUT, noise=True, faststart=True), 0.7)
    for name, (make, _) in BROKEN.items():
        make(folder / name)
    return folder
