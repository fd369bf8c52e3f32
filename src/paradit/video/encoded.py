"""Encoder of MP4, MOV and MKV (H.264) and WebM (VP9) files, by PyAV.

Players and browsers open the files, even while they grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from paradit.files import temporary_name
from paradit.inputs.videos import PRECISE
from paradit.video.frame import Frame

# x264's macroblock tree is off: with it, and x264's assembly, narrow videos (96 pixels) differ between
# processes.
H264 = {"crf": "18", "preset": "medium", "mbtree": "0"}
CODECS = {
    # suffix: container, codec, its options (of about equal quality, without visible loss)
    ".mp4": ("mp4", "libx264", H264),
    ".mov": ("mov", "libx264", H264),
    ".mkv": ("matroska", "libx264", H264),
    ".webm": ("webm", "libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "2"}),
}
# Fragments of a quarter of a second, so that a file plays while it grows.
FRAGMENTS = {"movflags": "+frag_keyframe+delay_moov+default_base_moof", "frag_duration": "250000"}
# Bit-exact, without random track numbers, so that the same frames make the same file.
CLUSTERS = {"cluster_time_limit": "250", "fflags": "+bitexact"}
GROWING = {".mp4": FRAGMENTS, ".mov": FRAGMENTS, ".mkv": CLUSTERS, ".webm": CLUSTERS}
FASTSTART = {"movflags": "+faststart"}
"""Muxer options that put the index at the start of a video file, so that browsers can play it while loading.
"""


class EncodedWriter:
    """Writer that encodes each frame as it arrives, so that memory holds only the encoder's look-ahead.

    The file plays while it grows, because it consists of fragments. Many players cannot show the length of a
    fragmented MP4 or MOV, seek in it or count its frames. A finished MP4 or MOV is therefore rewritten in one
    piece, with the index in front.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        size: tuple[int, int],
        fps: float,
        *,
        tags: Mapping[str, str],
        crf: int | None = None,
    ) -> None:
        """Open the file and the encoder.

        kind: the suffix that selects the format. size: width and height in pixels. tags: metadata of the
        file. crf: constant rate factor; None: the one in `CODECS`.
        """
        container, codec, options = CODECS[kind]
        if crf is not None:
            options = {**options, "crf": str(crf)}
        self._path, self._kind, self._tags = path, kind, dict(tags)
        # Every packet is written at once, so that players see all that has been encoded.
        growing = {**GROWING[kind], "flush_packets": "1"}
        self._file = av.open(str(path), "w", format=container, options=growing)
        self._file.metadata.update(self._tags)
        # 1001 is the largest denominator in use: 23.976 is 24000/1001.
        rate = Fraction(fps).limit_denominator(1001)
        stream = self._file.add_stream(codec, rate=rate, options=dict(options))
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        # Players guess the colours of untagged video from its size, each differently.
        context = self._stream.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709

    def write(self, frame: Frame) -> None:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=PRECISE,
        )
        self._file.mux(self._stream.encode(picture))

    def finish(self) -> None:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        if GROWING[self._kind] is FRAGMENTS:
            _join_fragments(self._path, CODECS[self._kind][0], self._tags)

    def close(self) -> None:
        self._file.close()


def _join_fragments(path: Path, container: str, tags: Mapping[str, str]) -> None:
    """Rewrite a fragmented video file in one piece; the encoded packets are copied, not encoded again."""
    part = temporary_name(path)
    try:
        with (
            av.open(str(path)) as fragments,
            av.open(str(part), "w", format=container, options=FASTSTART) as whole,
        ):
            whole.metadata.update(tags)
            stream = fragments.streams.video[0]
            copy = whole.add_stream_from_template(stream)
            for packet in fragments.demux(stream):
                if packet.dts is not None:  # PyAV ends the stream with an empty packet
                    packet.stream = copy
                    whole.mux(packet)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
