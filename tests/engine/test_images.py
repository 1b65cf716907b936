"""Image files, sound and otherwise, and their way to a model's pixels; transformers' processors on Pillow are
the oracle.
"""

from __future__ import annotations

import io
import json
import os
import random
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from PIL import ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from lite_llama.engine.image_processor import ImageProcessor
from lite_llama.engine.image_prompt import salts
from lite_llama.engine.images import MAX_BYTES, Image, PlacedImage, read_image
from lite_llama.models.config import VisionConfig
from lite_llama.models.errors import CheckpointError, UnsupportedModelError, UserError

VISION = VisionConfig(32, 48, 2, 70, 14, "quick_gelu", 1e-5, (2,), False, "gelu", True, 384)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> pillow.Image:
    """Smooth noise with sharp edges in it."""
    rng = random.Random(seed)
    bands = len(pillow.new(mode, (1, 1)).getbands())
    coarse = pillow.frombytes(mode, (9, 7), rng.randbytes(63 * bands))
    image = coarse.resize((width, height), pillow.Resampling.BICUBIC)
    image.paste(
        coarse.crop((0, 0, 1, 1)).resize((width // 3 or 1, height // 4 or 1)), (width // 3, height // 3)
    )
    return image


@pytest.fixture
def save(tmp_path):
    def save(image: pillow.Image, name: str, **options) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


# Pixels

SIZES = [(70, 70), (90, 60), (60, 90), (33, 47), (5, 9), (640, 311), (71, 70), (1, 90), (401, 5)]
RULES = {
    "clip": (
        CLIPImageProcessorPil,
        {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}},
    ),
    "clip-small": (CLIPImageProcessorPil, {"size": {"shortest_edge": 41}, "crop_size": 70}),
    "clip-crops": (CLIPImageProcessorPil, {"size": {"shortest_edge": 99}, "crop_size": 70, "resample": 2}),
    "squeezed": (
        CLIPImageProcessorPil,
        {"size": {"height": 70, "width": 70}, "do_center_crop": False, "image_mean": [0.5, 0.4, 0.3]},
    ),
    "not-resized": (CLIPImageProcessorPil, {"do_resize": False, "crop_size": 70, "do_normalize": False}),
    "raw": (
        CLIPImageProcessorPil,
        {"size": {"height": 70, "width": 70}, "crop_size": 70, "do_normalize": False, "do_rescale": False},
    ),
    "padded": (LlavaImageProcessorPil, {"do_pad": True, "size": {"shortest_edge": 70}, "crop_size": 70}),
    "not-padded": (LlavaImageProcessorPil, {"size": {"shortest_edge": 70}, "crop_size": 70}),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_pixels_are_those_of_transformers(rule, nested, tmp_path):
    kind, options = RULES[rule]
    theirs = kind(**options)
    if nested:  # as transformers 5 saves processors
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": theirs.to_dict()}))
    else:
        theirs.save_pretrained(tmp_path)
        (tmp_path / "processor_config.json").write_text('{"patch_size": 14}')
    ours = ImageProcessor.from_checkpoint(tmp_path, VISION)
    largest = 0.0
    for number, size in enumerate(SIZES):
        image = picture(*size, seed=number)
        expected = torch.as_tensor(np.array(theirs(image, return_tensors="np")["pixel_values"][0]))
        pixels = ours(image)
        assert pixels.dtype == torch.float32
        assert pixels.shape == expected.shape == (3, 70, 70)
        largest = max(largest, (pixels - expected).abs().max().item())
    print("largest difference", largest)
    assert largest <= (1e-4 if rule == "raw" else 1e-5)


def test_a_checkpoint_without_a_rule_gets_clips(tmp_path):
    ours = ImageProcessor.from_checkpoint(tmp_path, VISION)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 70}, crop_size=70)
    image = picture(90, 60)
    expected = torch.as_tensor(np.array(theirs(image, return_tensors="np")["pixel_values"][0]))
    torch.testing.assert_close(ours(image), expected)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        ("{", CheckpointError, "cannot be read as JSON"),
        ('{"size": {"shortest_edge": "wide"}}', CheckpointError, "incomplete or wrong"),
        ('{"size": {"width": 70}}', CheckpointError, "incomplete or wrong"),
        ('{"crop_size": 224}', CheckpointError, "does not make images of 70 x 70 pixels"),
        ('{"do_center_crop": false}', CheckpointError, "does not make images of 70 x 70 pixels"),
        ('{"image_processor_type": "SiglipImageProcessor"}', UnsupportedModelError, "SiglipImageProcessor"),
        ('{"image_processor_type": "LlavaNextImageProcessor"}', UnsupportedModelError, "LlavaNext"),
    ],
)
def test_rules_that_cannot_be_followed(raw, error, words, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(raw)
    with pytest.raises(error, match=words):
        ImageProcessor.from_checkpoint(tmp_path, VISION)


# Sound files


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_every_format_is_decoded_as_transformers_does(name, save):
    path = save(picture(90, 60), name)
    image = read_image(path)
    assert (image.name, image.size, image.note) == (name, (90, 60), "")
    expected = CLIPImageProcessorPil().process_image(pillow.open(path), do_convert_rgb=True)
    assert np.array_equal(np.moveaxis(expected, 0, -1), np.asarray(image.pixels()))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_colour_mode_is_decoded_as_transformers_does(mode, save):
    source = picture(50, 40, "RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode)
    path = save(source, "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    expected = CLIPImageProcessorPil().process_image(pillow.open(path), do_convert_rgb=True)
    pixels = read_image(path).pixels()
    assert pixels.mode == "RGB"
    assert np.array_equal(np.moveaxis(expected, 0, -1), np.asarray(pixels))


def test_transparency_becomes_white_in_palettes_too(save):
    image = pillow.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 0, 1])
    path = save(image, "a.png", transparency=1)
    assert list(read_image(path).pixels().get_flattened_data()) == [(255, 0, 0), (255, 255, 255)] * 2
    glass = save(pillow.new("RGBA", (2, 2), (0, 0, 0, 0)), "b.png")
    assert set(read_image(glass).pixels().get_flattened_data()) == {(255, 255, 255)}


def test_16_bits_keep_their_upper_half(save):
    levels = (np.arange(256, dtype=np.uint16) * 256 + 77).reshape(16, 16)
    pixels = np.asarray(read_image(save(pillow.fromarray(levels), "a.png")).pixels())
    assert np.array_equal(pixels[..., 0], levels >> 8)
    assert read_image(save(pillow.fromarray(levels), "a.tiff")).pixels().tobytes() == pixels.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(orientation, save):
    exif = pillow.Exif()
    exif[0x0112] = orientation
    path = save(picture(40, 24), "a.png", exif=exif)
    image = read_image(path)
    expected = ImageOps.exif_transpose(pillow.open(path))
    assert image.size == expected.size == ((40, 24) if orientation < 5 else (24, 40))
    assert image.pixels().tobytes() == expected.tobytes()


def test_of_an_animation_the_first_frame_is_seen_and_that_is_said(save):
    frames = [pillow.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = save(frames[0], name, save_all=True, append_images=frames[1:], **options)
        image = read_image(path)
        assert image.note == f"{name} is animated: the model sees the first of its 3 frames."
        assert set(image.pixels().get_flattened_data()) == {(255, 0, 0)}
    pages = read_image(save(frames[0], "a.tif", save_all=True, append_images=frames[1:]))
    assert pages.note == "a.tif has 3 pages: the model sees the first one."


def test_the_previews_in_a_cameras_file_are_no_animation(save):
    frames = [picture(40, 30), picture(20, 15)]
    path = save(frames[0], "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    with pillow.open(path) as opened:
        assert opened.format == "MPO"
    assert (read_image(path).size, read_image(path).note) == ((40, 30), "")


def test_images_are_told_apart_by_content(save, tmp_path):
    first, other = read_image(save(picture(9, 9), "a.png")), read_image(save(picture(9, 9, seed=1), "b.png"))
    (tmp_path / "c.png").write_bytes(first.content)
    copy = read_image(tmp_path / "c.png")
    assert first == copy != other
    assert first.digest == copy.digest != other.digest
    assert len(first.digest) == 16


def test_salts_name_the_images_that_begin_in_a_block_in_order():
    one, two, three = (Image(name, name.encode(), (1, 1)) for name in ("one", "two", "three"))
    places = PlacedImage(one, 1, 6), PlacedImage(two, 8, 13), PlacedImage(three, 32, 37)
    assert salts(places) == {0: one.digest + two.digest, 2: three.digest}
    assert salts(()) == {}


# Files that are none


def refuse(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_what_is_no_file(tmp_path, monkeypatch):
    assert refuse(tmp_path / "no.png") == f"There is no image file {tmp_path / 'no.png'}: check the path."
    assert "is a directory" in refuse(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no file" in refuse(tmp_path / "pipe.png")
    assert "cannot be read" in refuse(tmp_path / ("a" * 300 + ".png"))
    (tmp_path / "empty.png").touch()
    assert refuse(tmp_path / "empty.png") == "empty.png is empty: choose another image."
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "are the most for an image" in refuse(tmp_path / "huge.png")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # the tests may run as root, who may read anything
    assert "You may not read" in refuse(tmp_path / "empty.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_cut_off_files(name, save):
    path = save(picture(200, 150), name)
    content = path.read_bytes()
    for kept in (0.95, 0.5, 0.1):
        path.write_bytes(content[: int(len(content) * kept)])
        refuse(path)
    path.write_bytes(content[:3])
    assert "is no image that can be read" in refuse(path)


def test_flipped_bits_never_escape_as_another_exception(save):
    rng = random.Random(3)
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"):
        path = save(picture(60, 40), name)
        content = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(min(len(damaged), 400))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with suppress(UserError):
                image = read_image(path)
                assert image.pixels().size == image.size


def test_other_kinds_of_files(tmp_path, save):
    files = {
        "text.png": (b"not an image at all\n", "is no image that can be read: choose a PNG"),
        "a.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
        "svg.png": (b"<SVG/>", "is an SVG drawing"),
        "a.heic": (b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC or AVIF image"),
        "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that can be read"),
    }
    for name, (content, words) in files.items():
        (tmp_path / name).write_bytes(content)
        assert words in refuse(tmp_path / name)
    levels = pillow.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert "floating-point pixels" in refuse(save(levels, "a.tiff"))


def png_of_nothing(width: int, height: int) -> bytes:
    """A sound header that promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000), (8_001, 8_000), (65_500, 65_500)])
def test_a_decompression_bomb_is_refused_from_its_header(size, tmp_path, recwarn):
    (tmp_path / "bomb.png").write_bytes(png_of_nothing(*size))
    tracemalloc.start()
    sentence = refuse(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sentence == "bomb.png has too many pixels, and 64 million are the most: make it smaller first."
    assert peak < 5_000_000
    assert not recwarn.list


def test_the_real_bomb_too(tmp_path):
    """20,000 x 20,000 black pixels, in a file of 49 kB."""
    data = io.BytesIO()
    pillow.new("1", (20_000, 20_000)).save(data, "PNG")
    (tmp_path / "bomb.png").write_bytes(data.getvalue())
    assert "too many pixels" in refuse(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(5000, 3), (3, 5000)])
def test_threads_are_refused_before_they_are_widened(size, save):
    assert "too long and thin" in refuse(save(pillow.new("RGB", size), "a.png"))
