from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from imgcls.archive.export import export_onnx, quantise_onnx
from imgcls.training.config import read_config
from imgcls.training.start import start_network
from model.classifier import softmax
from model.engines.choose import load_engine
from model.engines.eager import load_pixel_network
from model.engines.kinds import KINDS, parse_kind
from model.engines.open_vino import has_bf16, open_core
from model.errors import SpecError
from model.network import build_network
from model.spec import ModelSpec
from model.whitened_cnn import WhitenedCNN


def make_pixels(count: int, *, channels: int = 3, size: int = 8) -> Tensor:
    """Returns uint8 images whose neighbouring pixels and channels are alike, as a picture's are."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.rand(count, 1, size + 2, size + 2, generator=generator)
    smooth = functional.avg_pool2d(noise, 3, stride=1).expand(-1, channels, -1, -1)
    own = torch.rand(count, channels, size, size, generator=generator)
    return ((0.9 * smooth + 0.1 * own) * 255).to(torch.uint8)


def make_spec(*, channels: int = 3, size: int = 8, **parameters: object) -> ModelSpec:
    return ModelSpec(
        network="whitened_cnn",
        parameters={"widths": (4, 8)} | parameters,
        channels=channels,
        size=size,
        resize=size,
        mean=(0.5,) * channels,
        std=(0.1,) * channels,
        classes=("a", "b", "c"),
    )


def find_patches(network: WhitenedCNN, images: Tensor) -> Tensor:
    """Returns what the first convolution makes of each place: (places, filters)."""
    return functional.conv2d(images, network.whitening).movedim(1, 3).flatten(0, 2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_whitened_patches_are_uncorrelated_and_of_one_size(channels):
    network = WhitenedCNN(channels=channels, size=8, classes=3, widths=(4,))
    images = (make_pixels(300, channels=channels).float() / 255 - 0.5) / 0.1
    before = find_patches(network, images)
    assert torch.corrcoef(before[:, : 4 * channels].T).triu(1).abs().max() > 0.5  # neighbours are alike
    network.whiten([images[:100], images[100:]])
    after = find_patches(network, images)
    products = after.T @ after / len(after)
    half = 4 * channels
    assert (products[:half, :half] - torch.eye(half)).abs().max() < 0.02
    assert torch.equal(after[:, half:], -after[:, :half])


def test_what_hardly_varies_is_not_blown_up():
    network = WhitenedCNN(channels=1, size=8, classes=2, widths=(4,))
    network.whiten([torch.full((10, 1, 8, 8), 0.3)])
    assert torch.isfinite(network.whitening).all()
    assert network.whitening.abs().max() < 50


def test_the_whitening_is_of_the_training_images_as_normalised_and_is_not_learned():
    spec, pixels = make_spec(), make_pixels(200)
    network = start_network(spec, read_config(["--network", "whitened_cnn"], description=""), pixels)
    after = find_patches(network, (pixels.float() / 255 - 0.5) / 0.1)
    assert ((after.T @ after / len(after))[:12, :12] - torch.eye(12)).abs().max() < 0.02
    assert "whitening" in network.state_dict()
    assert "whitening" not in dict(network.named_parameters())


def test_weights_to_start_from_bring_their_own_whitening(tmp_path):
    earlier = build_network(make_spec())
    earlier.whiten([(make_pixels(200).float() / 255 - 0.2) / 0.4])
    save_file(earlier.state_dict(), tmp_path / "weights.safetensors")
    config = read_config(["--weights", str(tmp_path / "weights.safetensors")], description="")
    network = start_network(make_spec(), config, make_pixels(200))
    assert torch.equal(network.whitening, earlier.whitening)


@pytest.mark.parametrize(("channels", "size", "widths"), [(1, 8, [4]), (3, 17, [4, 8]), (4, 33, [2] * 5), (1, 3, [4])])
def test_channels_size_and_blocks_are_parameters(channels, size, widths):
    spec = make_spec(channels=channels, size=size, widths=widths, convolutions=3, dropout=0.5)
    network = build_network(spec).eval()
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 3)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [w for w in widths for _ in "abc"]
    kinds = [type(layer).__name__ for layer in network.features[0]]
    assert kinds == ["Conv2d", "MaxPool2d", "BatchNorm2d", "GELU", *["Conv2d", "BatchNorm2d", "GELU"] * 2]


def test_where_in_the_image_something_stands_changes_nothing():
    """Of the last feature map the largest values count: here one pixel of it, moved by what a place of it spans."""
    network = build_network(make_spec(size=33)).eval()
    one, other = torch.zeros(2, 1, 3, 33, 33)
    one[..., 12:14, 12:14] = other[..., 12:14, 16:18] = 3.0
    assert torch.equal(network(one), network(other))
    assert not torch.equal(network(one), network(torch.zeros(1, 3, 33, 33)))


@pytest.mark.parametrize(("size", "blocks", "most"), [(8, 3, 2), (2, 1, 0), (1, 1, 0)])
def test_more_blocks_than_the_size_can_be_halved_are_refused(size, blocks, most):
    with pytest.raises(SpecError, match=rf"widths has {blocks} blocks; expected at most {most}, .* leaves of {size}"):
        WhitenedCNN(channels=1, size=size, classes=2, widths=(1,) * blocks)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden": 3}, "hidden: is not a field that is known here"),
        ({"widths": []}, "widths: .* at least 1 item"),
        ({"views": 3}, r"views: .* 1, 2 or 6 \(got 3\)"),
        ({"convolutions": 0}, r"convolutions: .* greater than or equal to 1 \(got 0\)"),
    ],
)
def test_a_parameter_that_cannot_be_names_the_field_what_it_got_and_what_it_accepts(parameters, message):
    with pytest.raises(SpecError, match=f"network whitened_cnn, parameters: {message}"):
        build_network(make_spec(**parameters))


@pytest.mark.parametrize("views", [1, 2, 6])
def test_the_logits_are_the_mean_over_the_views_and_in_training_those_of_the_image(views):
    network = build_network(make_spec(views=views))
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = build_network(make_spec())
    plain.load_state_dict(network.state_dict())
    plain.eval()

    def both(seen: Tensor) -> Tensor:
        return (plain(seen) + plain(seen.flip(3))) / 2

    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    expected = {1: plain(images), 2: both(images)}
    expected[6] = both(images) / 2 + both(padded[:, :, :8, :8]) / 4 + both(padded[:, :, 2:, 2:]) / 4
    torch.testing.assert_close(network.eval()(images), expected[views])
    assert torch.equal(network.train()(images), plain.train()(images))


def test_a_mirrored_image_is_the_same_to_one_that_looks_at_both():
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for views, is_same in ((1, False), (2, True)):
        network = build_network(make_spec(views=views)).eval()
        assert torch.allclose(network(images), network(images.flip(3)), atol=1e-6) == is_same


@pytest.fixture(scope="module")
def six_views(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, np.ndarray, Path]:
    """A network that looks six times, images, and a folder with its weights and ONNX models."""
    folder = tmp_path_factory.mktemp("six-views")
    spec, pixels = make_spec(size=16, views=6), make_pixels(40, size=16).numpy()
    network = build_network(spec)
    network.whiten([(torch.from_numpy(pixels).float() / 255 - 0.5) / 0.1])
    save_file(network.state_dict(), folder / "weights.safetensors")
    module = load_pixel_network(
        folder / "weights.safetensors", spec, kind=KINDS["eager"], layout=torch.contiguous_format
    )
    export_onnx(module, spec, folder / "fp32.onnx")
    quantise_onnx(folder / "fp32.onnx", folder / "int8.onnx", pixels=pixels)
    return spec, pixels, folder


@pytest.mark.parametrize(
    "name", ["onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8", "openvino-bf16", "eager-bf16"]
)
def test_every_engine_looks_as_often_as_eager_does_in_any_batch(six_views, name):
    spec, pixels, folder = six_views
    weights, kind = folder / "weights.safetensors", parse_kind(name)
    if name == "openvino-bf16" and not has_bf16(open_core()):
        pytest.skip("the processor has no bfloat16 instructions")
    onnx = folder / ("int8.onnx" if kind.precision == "int8" else "fp32.onnx")
    file = weights if kind.runtime == "eager" else onnx
    engine = load_engine(file, spec, kind=kind, device="cpu")
    expected = load_engine(weights, spec, kind=KINDS["eager"], device="cpu").run(pixels[:5])
    for size in (1, 2, 5):
        got = softmax(engine.run(pixels[:size]), temperature=1)
        assert np.abs(got - softmax(expected[:size], temperature=1)).max() < {"fp32": 1e-4}.get(kind.precision, 0.05)
