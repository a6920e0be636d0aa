"""Images of unusual formats and with unusual metadata: same pixels for every reader."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmjax.data.build import in_memory
from mmjax.data.pipeline.image_modality import Touch
from mmjax.data.sources.registry import open_source
from mmjax.data.storage import image_files, record_images, schema
from mmjax.errors import UserError
from tests.messages import raises

RAMP = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
COLORS = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], -1)


def chunk(name: bytes, body: bytes) -> bytes:
    data = name + body
    return struct.pack(">I", len(body)) + data + struct.pack(">I", zlib.crc32(data))


def png(pixels: np.ndarray, *chunks: bytes, bits: int = 8) -> bytes:
    """Returns a gray or RGB image, uint8 or big-endian uint16, with additional chunks."""
    color = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def all_readers(path) -> list[np.ndarray]:
    """Returns the image as `read_image`, a touch column, and the source of image folders see it."""
    record = open_source(f"images:{path.parent.parent}", split="train").fetch(0)
    return [
        image_files.read_image(path),
        record_images.decode(image_files.read_encoded(path)),
        record_images.decode(schema.decode(record).frames[0]),
    ]


def place(tmp_path, name: str, content: bytes | Image.Image, **options):
    """Writes the only image of an image folder; returns its path."""
    path = tmp_path / "class" / name
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


WIDE = RAMP.astype(np.uint16) * 257  # the same ramp with 16 bits
GRAY = RAMP[..., None].repeat(3, -1)
FORMATS = {
    "gray 16 bits.png": (Image.fromarray(WIDE), GRAY),
    "gray 16 bits.tif": (Image.fromarray(WIDE), GRAY),
    "gray 16 bits.pgm": (Image.fromarray(WIDE), GRAY),
    "color 16 bits.png": (png(COLORS.astype(">u2") * 257, bits=16), COLORS),
    "floats.tif": (Image.fromarray(RAMP / np.float32(255)), GRAY),
    "one bit.png": (Image.fromarray(RAMP > 127), (GRAY > 127) * 255),
    "palette.gif": (Image.fromarray(RAMP), GRAY),
    "ink.tif": (Image.fromarray(COLORS).convert("CMYK"), COLORS),
    "alpha.png": (Image.fromarray(np.stack([0 * RAMP, RAMP], -1), "LA"), 255 - GRAY),
    "opaque.png": (Image.fromarray(COLORS).convert("RGBA"), COLORS),
    "transparent gray.png": (png(RAMP, chunk(b"tRNS", b"\0\7")), np.where(GRAY == 7, 255, GRAY)),
    "transparent 16 bits.png": (
        png(WIDE.astype(">u2"), chunk(b"tRNS", struct.pack(">H", 7 * 257)), bits=16),
        np.where(GRAY == 7, 255, GRAY),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_sees_the_same_8_bit_opaque_pixels(tmp_path, name):
    content, expected = FORMATS[name]
    for pixels in all_readers(place(tmp_path, name, content)):
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_reader_applies_every_orientation(tmp_path, suffix, orientation):
    path = place(tmp_path, f"x.{suffix}", Image.fromarray(COLORS), exif=exif(orientation))
    # Rows and columns of the stored image that are at the top and left of the upright one.
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    expected = COLORS.swapaxes(0, 1) if orientation >= 5 else COLORS
    expected = expected[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    assert image_files.image_size(path) == expected.shape[1::-1]
    for pixels in all_readers(path):
        assert np.abs(pixels.astype(int) - expected).max() <= (4 if suffix == "jpg" else 0)


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        (np.float32([[0.5, np.nan]]), ("NaN",)),
        (np.float32([[0.0, 200.0]]), ("200", "[0, 1]")),
        (np.float32([[-0.5, 0.5]]), ("-0.5", "[0, 1]")),
        (np.int32([[0, 70_000]]), ("32-bit",)),
    ],
)
def test_pixels_that_have_no_8_bit_value_are_refused(tmp_path, values, facts):
    Image.fromarray(values).save(tmp_path / "x.tif")
    for read in (image_files.read_image, image_files.read_encoded):
        with raises(UserError, tmp_path / "x.tif", *facts):
            read(tmp_path / "x.tif")
    with raises(UserError, *facts):
        in_memory.image_batch("touch", [Image.fromarray(values)], Touch(size=8))


def test_large_or_damaged_metadata_of_a_png_is_ignored(tmp_path):
    bomb = zlib.compress(bytes(20_000_000), 9)  # 20 kB
    chunks = (
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        chunk(b"iCCP", b"profile\0\0" + bomb),
        chunk(b"tEXt", b"Comment\0" + bytes(3_000_000)),
        chunk(b"gAMA", b"?"),
        chunk(b"eXIf", b"?"),
        chunk(b"tEXt", b"?")[:-1] + b"?",  # wrong checksum
    )
    path = place(tmp_path, "x.png", png(COLORS, *chunks))
    assert image_files.image_size(path) == (256, 16)
    for pixels in all_readers(path):
        np.testing.assert_array_equal(pixels, COLORS)


def test_orientation_in_the_text_of_a_png_is_applied(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    for body in (b"\0\0\0\0" + xmp, b"\1\0\0\0" + zlib.compress(xmp)):
        (tmp_path / "x.png").write_bytes(png(COLORS, chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body)))
        result = image_files.read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(result, np.rot90(COLORS, -1))


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT", b"IEND"])
def test_a_png_with_a_wrong_checksum_or_without_its_end_is_damaged(tmp_path, name):
    data, path = bytearray(png(COLORS)), tmp_path / "x.png"
    position = data.index(name)
    (length,) = struct.unpack_from(">I", data, position - 4)
    data[position + 4 + length] ^= 1
    for content in (data, data[: position + 4]):
        path.write_bytes(content)
        for read in (image_files.read_image, image_files.read_encoded, image_files.image_size):
            with raises(UserError, path):
                read(path)


def test_large_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    buffers = {name: io.BytesIO() for name in ("gif", "jpg")}
    for name, buffer in buffers.items():
        Image.fromarray(RAMP).save(buffer, "GIF" if name == "gif" else "JPEG")
    gif, jpeg = (bytearray(buffer.getvalue()) for buffer in buffers.values())
    gif[6:10] = struct.pack("<HH", 20_000, 20_000)
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 20_000, 20_000)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    bomb = png(RAMP)[:8] + header + png(RAMP)[8 + len(header) :]
    for name, data in {"x.gif": gif, "x.jpg": jpeg, "x.png": bomb}.items():
        (tmp_path / name).write_bytes(data)
        for read in (image_files.read_image, image_files.read_encoded, image_files.image_size):
            with raises(UserError, tmp_path / name, "20000×20000", "MMJAX_MAX_IMAGE_PIXELS"):
                read(tmp_path / name)
    monkeypatch.setenv("MMJAX_MAX_IMAGE_PIXELS", "500000000")  # Pillow's own limit is lower
    assert image_files.image_size(tmp_path / "x.png") == (20_000, 20_000)
    monkeypatch.setenv("MMJAX_MAX_IMAGE_PIXELS", "4000")
    (tmp_path / "small.png").write_bytes(png(COLORS))
    with raises(UserError, "256×16", "MMJAX_MAX_IMAGE_PIXELS=4096"):
        image_files.read_image(tmp_path / "small.png")


def test_an_unknown_format_is_described_without_addresses(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>")
    with raises(UserError, tmp_path / "x.jpg") as info:
        image_files.read_image(tmp_path / "x.jpg")
    assert " object at 0x" not in str(info.value)


def test_images_of_records_are_decoded_as_in_training(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(COLORS).save(buffer, "JPEG", exif=exif(6))
    jpeg = buffer.getvalue()
    assert record_images.size(jpeg) == (256, 16)  # TensorFlow ignores the orientation
    assert record_images.decode(jpeg).shape == (16, 256, 3)
    for data in (jpeg, png(COLORS)):
        gray = np.asarray(Image.fromarray(COLORS).convert("L"))
        assert np.abs(record_images.gray(data) - gray).max() < 3
        assert record_images.gray(data, reduced=True).mean() == pytest.approx(gray.mean(), abs=1)
    for data in (jpeg[:-200], png(COLORS)[:-15], png(COLORS)[:20], b"GIF89a"):
        with raises(UserError, "image 7"):
            record_images.decode(data, "image 7")
        with raises(UserError, "image 7"):
            record_images.gray(data, "image 7", reduced=True)
