"""Images, videos and audio."""

import numpy as np

from tests.drills.kinds import kind

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
IMAGE = {"*": "the decoder tolerates damage, as libjpeg, libwebp and libtiff do"}


def image(suffix, uncovered, **options):
    def make(directory):
        from PIL import Image

        from mmjax.data.storage import image_files

        path = f"a.{suffix}"
        Image.fromarray(PIXELS).save(directory / path, **options)

        def read(where):
            return (
                image_files.read_image(where / path),
                image_files.read_encoded(where / path),
                image_files.image_size(where / path),
            )

        return read

    make.__name__ = f"image_{suffix}"
    return kind(uncovered)(make)


image("jpg", IMAGE)
image("png", {"*": "chunks that are not critical, and the size of the last one, are ignored"})
image("webp", IMAGE)
image("gif", IMAGE)
image("tiff", IMAGE, compression="tiff_lzw")
image("bmp", IMAGE)
image("ppm", IMAGE)


def film(suffix, **options):
    def make(directory):
        from mmjax.data.storage.media import Media
        from tests.data import films

        path = f"a.{suffix}"
        audio = 0.3 * np.sin(np.arange(8000) / 20, dtype=np.float32)[None]
        frames = [films.coded_frame(i) for i in range(10)] if options.get("video_codec") else ()
        films.write_film(directory / path, frames=frames, waveform=audio, **options)

        def read(where):
            with Media(where / path) as media:
                return media.duration(), vars(media.read(fps=10.0, sample_rate=8000))

        return read

    make.__name__ = f"media_{suffix}"
    return kind({"*": "most codecs have no checksum; FFmpeg conceals damage"})(make)


film("mp4", video_codec="libx264")
film("mkv", video_codec="libx264")
film("avi", video_codec="mpeg4", audio_codec="pcm_s16le")
film("wav", audio_codec="pcm_s16le")
film("flac", audio_codec="flac")
film("mp3", audio_codec="libmp3lame")
