"""Decoding JPEGs on a card: the code is run on the CPU, where nvImageCodec decodes with libjpeg-turbo."""

import io
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from handler import card_decoding
from handler.card_decoding import CardDecoder
from handler.decoding import Decoder
from handler.errors import RequestError
from handler.options import Options
from handler.request import ImageRequest
from handler.settings import HandlerSettings
from handler.sources import RawImage
from imgcls.tuning.images import make_photograph
from model.errors import SpecError
from model.golden import GoldenItem
from model.preprocess import find_square, pixels_from_bytes, to_pixels
from model.resample import INTERPOLATIONS, resample
from model.spec import ModelSpec

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec has no wheel here")

ON_GPU = HandlerSettings(decode="gpu")


def make_spec(**fields: object) -> ModelSpec:
    channels = fields.get("channels", 3)
    common = {"size": 28, "resize": 32, "mean": (0.5,) * channels, "std": (0.5,) * channels, "classes": ("a", "b")}
    return ModelSpec(**common | fields)


def make_card(settings: HandlerSettings = ON_GPU, **fields: object) -> CardDecoder:
    return CardDecoder(make_spec(**fields), settings, device="cpu", threads=1)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    with Image.open(make_photograph(tmp_path_factory.mktemp("photo") / "a.jpg", seed=1)) as image:
        return image.convert("RGB")


def as_jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def refuse_difference(one: np.ndarray, other: np.ndarray, *, is_tall: bool = False) -> None:
    """Rounding otherwise moves values by one: few of them, unless Pillow has taken the rows of a tall picture first."""
    difference = np.abs(one.astype(np.int16) - other)
    assert difference.max() <= 1 and difference.mean() < (0.5 if is_tall else 0.05)


@pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (600, 40), (40, 600), (224, 224), (30, 29)])
@pytest.mark.parametrize(("side", "resize"), [(28, 32), (16, 16)])
def test_resampling_is_pillows(photograph, interpolation, size, side, resize):
    spec = make_spec(interpolation=interpolation, size=side, resize=resize)
    image = photograph.resize(size)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    box = find_square((0, 0, *size), spec)
    mine = resample(pixels, box=box, size=side, interpolation=interpolation)
    assert (mine.dtype, mine.shape) == (torch.uint8, (3, side, side))
    refuse_difference(mine.numpy(), to_pixels(image, spec, exact=True), is_tall=size[0] < size[1] - 1)


@pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (30, 20), (224, 223)])
def test_enlarging_is_pillows_too(photograph, interpolation, size):
    spec = make_spec(interpolation=interpolation, size=224, resize=256)
    image = photograph.resize(size)
    box = find_square((0, 0, *size), spec)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    mine = resample(pixels, box=box, size=224, interpolation=interpolation)
    refuse_difference(mine.numpy(), to_pixels(image, spec, exact=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 30}, {"subsampling": 0}, {"restart_marker_blocks": 5}, {"optimize": True, "quality": 95}],
)
def test_a_jpeg_comes_out_as_on_the_cpu(photograph, options):
    sizes = [(500, 375), (499, 333), (97, 64), (33, 1201)]
    files = [as_jpeg(photograph.resize(size), **options) for size in sizes]
    files.append(as_jpeg(photograph.convert("L"), **{k: v for k, v in options.items() if k != "subsampling"}))
    card = make_card()
    assert all(map(card.takes, files))
    for data, pixels in zip(files, card.decode(files, [card.takes(data) for data in files]), strict=True):
        refuse_difference(pixels, pixels_from_bytes(data, make_spec(), exact=True), is_tall=True)


def test_what_the_card_takes(photograph):
    good, exif = as_jpeg(photograph), Image.Exif()
    exif[274] = 6
    card = make_card()
    assert card.takes(good)
    assert not card.takes(as_jpeg(photograph, exif=exif)), "turned by its EXIF block"
    assert not card.takes(as_jpeg(photograph.convert("CMYK")))
    assert not card.takes(good[:-100]), "no end of image"
    assert not card.takes(good + b"more")
    assert not card.takes(as_jpeg(photograph, progressive=True)), "several scans"
    assert not card.takes(b"") and not card.takes(b"\xff\xd8\xff\xd9") and not card.takes(b"\x89PNG" + good)
    assert not make_card(HandlerSettings(decode="gpu", max_pixels=500 * 375 - 1)).takes(good)
    assert not make_card(HandlerSettings(decode="gpu", max_bytes=len(good) - 1)).takes(good)


def test_a_header_that_parsers_read_differently_stays_off_the_card(photograph):
    """The first one made nvImageCodec 0.9 write past its buffer: to Pillow a marker without length, to it one with."""
    good = as_jpeg(photograph.resize((64, 48)))
    frame = good.index(b"\xff\xc0")
    length = int.from_bytes(good[frame + 2 : frame + 4], "big")
    segment = good[frame : frame + 2 + length]
    large = segment[:5] + (3000).to_bytes(2, "big") * 2 + segment[9:]
    hidden = b"\xff\xd0" + b"\xff\xfe" + (len(large) + 2).to_bytes(2, "big") + large
    card = make_card()
    assert card.takes(good)
    odd = [good[:2] + hidden + good[2:], good[:2] + b"\x00" + good[2:], good[:2] + b"\xff" + good[2:]]
    odd += [good[:frame] + large + good[frame:], good[:frame] + segment + good[frame:]]
    odd += [good.replace(segment, segment.replace(b"\x01\x22\x00", b"R\x22\x00"))]
    odd += [good[:2] + b"\xff\xd8" + good[2:], good[:-2] + b"\xff\xc0" + good[-2:]]
    assert not any(map(card.takes, odd))


def test_a_size_that_is_announced_otherwise_is_not_decoded(photograph):
    good = as_jpeg(photograph.resize((64, 48)))
    [pixels, none] = make_card().decode([good, good], [(64, 48), (64, 49)])
    assert pixels is not None and none is None


def test_mutated_jpegs_end_no_worker_and_are_answered_as_without_a_card(photograph):
    generator = np.random.default_rng(0)
    files = []
    for quality in (30, 90):
        good = as_jpeg(photograph.resize((40, 30)), quality=quality)
        for _ in range(150):
            data = bytearray(good)
            for place in generator.integers(len(data), size=generator.integers(1, 4)):
                data[place] = generator.integers(256)
            files.append(bytes(data))
    with_card, without = make_decoders()
    images = [ImageRequest(RawImage(data), Options(top_k=1)) for data in files]
    mine, reference = with_card.decode(images), without.decode(images)
    assert [type(each) for each in mine] == [type(each) for each in reference]
    assert sum(with_card._card.takes(data) is not None for data in files) > 100


def make_decoders(settings: HandlerSettings = ON_GPU) -> tuple[Decoder, Decoder]:
    """One that has a card, and one that decodes all on the CPU."""
    with_card = Decoder(make_spec(), settings, device="cpu", threads=2)
    with_card._card = CardDecoder(make_spec(), settings, device="cpu", threads=1)
    return with_card, Decoder(make_spec(), settings.model_copy(update={"decode": "cpu"}), device="cpu", threads=2)


def make_mixed(photograph: Image.Image) -> list[ImageRequest | RequestError]:
    """Good JPEGs of several sizes among all that a sender can get wrong."""
    good = as_jpeg(photograph)
    png = io.BytesIO()
    photograph.save(png, "PNG")
    bad = [good[:5000], good[:5000] + b"\xff\xd9", b"", b"no image", good[:3] + b"\xff\xd9", bytes(20) + good]
    files = [good, *bad, png.getvalue(), as_jpeg(photograph.resize((64, 50))), as_jpeg(photograph.convert("CMYK"))]
    return [RequestError("odd"), *(ImageRequest(RawImage(data), Options(top_k=1)) for data in files)]


@pytest.mark.parametrize("max_pixels", [50_000_000, 500 * 375])
def test_each_image_is_answered_for_itself_as_without_a_card(photograph, max_pixels):
    images = make_mixed(photograph)
    mine, reference = (
        decoder.decode(images) for decoder in make_decoders(HandlerSettings(decode="gpu", max_pixels=max_pixels))
    )
    assert sum(isinstance(each, np.ndarray) for each in mine) == 5
    for one, other in zip(mine, reference, strict=True):
        if isinstance(one, np.ndarray):
            assert np.abs(one.astype(np.int16) - other).mean() < 1, "the CPU decodes at a reduced scale"
        else:
            assert (type(one), str(one)) == (type(other), str(other))


def test_the_card_decodes_what_it_takes(photograph, monkeypatch):
    with_card, _ = make_decoders()
    seen: list[int] = []
    decode = with_card._card.decode
    monkeypatch.setattr(with_card._card, "decode", lambda files, sizes: seen.append(len(files)) or decode(files, sizes))
    with_card.decode([image for image in make_mixed(photograph) for _ in range(2)])
    assert seen == [6], "two good ones and one whose middle is missing, twice"


def test_a_card_that_fails_leaves_its_images_to_the_cpu(photograph, monkeypatch, caplog):
    with_card, reference = make_decoders()

    def fail(*_: object) -> None:
        raise RuntimeError("nvJPEG: allocator failed")

    monkeypatch.setattr(with_card._card, "decode", fail)
    images = [ImageRequest(RawImage(as_jpeg(photograph)), Options(top_k=1))] * 3
    for one, other in zip(with_card.decode(images), reference.decode(images), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "3 images could not be decoded on the GPU (nvJPEG: allocator failed), trying the CPU" in caplog.text


def test_a_worker_without_a_gpu_says_so_and_decodes_on_the_cpu(photograph, caplog):
    decoder = Decoder(make_spec(), ON_GPU, device="cpu", threads=1)
    assert decoder.place == "cpu"
    assert "decode is gpu, and this worker has none: JPEGs are decoded on the CPU" in caplog.text
    [pixels] = decoder.decode([ImageRequest(RawImage(as_jpeg(photograph)), Options(top_k=1))])
    assert pixels.shape == (3, 28, 28)


def make_golden(data: bytes) -> GoldenItem:
    return GoldenItem(file="0.jpg", index=0, label="a", probability=0.5, data=data)


def test_golden_inputs_are_compared_before_a_worker_is_ready(photograph, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    card, golden = make_card(), make_golden(as_jpeg(photograph))
    png = io.BytesIO()
    photograph.save(png, "PNG")
    card.check([golden, make_golden(png.getvalue())])
    assert "JPEGs are decoded on cpu: 2 golden inputs within 0.00 of 255 on average of the CPU's" in caplog.text
    monkeypatch.setattr(card_decoding, "resample", lambda image, **options: resample(image, **options) ^ 2)
    with pytest.raises(SpecError, match=r"0\.jpg: decoded on cpu it differs .* by 2\.00 of 255 .*; set decode: cpu in"):
        card.check([golden])
    monkeypatch.setattr(card, "decode", lambda files, sizes: [None] * len(files))
    with pytest.raises(SpecError, match=r"differs from the CPU's by 255\.00"):
        card.check([golden])

    def fail(*_: object) -> None:
        raise RuntimeError("no nvJPEG")

    monkeypatch.setattr(card, "decode", fail)
    with pytest.raises(SpecError, match=r"golden input 0\.jpg cannot be decoded on cpu: no nvJPEG; set decode: cpu in"):
        card.check([golden])


@pytest.mark.parametrize("fields", [{"channels": 1}, {"channels": 4}, {"interpolation": "nearest"}])
def test_networks_whose_input_is_none_for_the_card_are_refused(fields):
    message = r"decode is gpu, which is for pictures of 3 channels .*; set decode: cpu in the"
    with pytest.raises(SpecError, match=message):
        Decoder(make_spec(**fields), ON_GPU, device="cpu", threads=1)  # so also where the archive is built


def test_a_missing_nvimagecodec_is_one_line(monkeypatch):
    monkeypatch.delattr("nvidia.nvimgcodec")
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(
        SpecError, match=r"decode is gpu, and .*nvimgcodec.*; pip install '\.\[gpu\]', or set decode: cpu"
    ):
        make_card()
