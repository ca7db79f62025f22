import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.errors import SpecError
from model.network import build_network, load_network
from model.simple_cnn import SimpleCNN
from model.spec import ModelSpec


def make_spec(network: str = "simple_cnn", **fields: object) -> ModelSpec:
    channels = fields.get("channels", 3)
    fields = {"size": 16, "mean": (0.0,) * channels, "std": (1.0,) * channels, "classes": tuple("abcdefghij")} | fields
    return ModelSpec(network=network, resize=fields["size"], **fields)


def published_listing() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
        nn.ReLU(),
        nn.Linear(10, 10),
    )


def test_simple_cnn_is_the_published_listing():
    network, listing = build_network(make_spec()).eval(), published_listing()
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes == [(32, 3, 3, 3), (32,), (10, 2048), (10,), (10, 10), (10,)]
    assert sum(parameter.numel() for parameter in network.parameters()) == 896 + 20_490 + 110
    listing.load_state_dict(dict(zip(listing.state_dict(), network.state_dict().values(), strict=True)))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), listing(images))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("channels", "size", "widths"), [(1, 8, [4]), (3, 17, [4, 8]), (4, 32, [2, 2, 2, 2, 2]), (1, 2, [4])]
)
def test_channels_size_and_blocks_are_parameters(channels, size, widths, norm):
    parameters = {"widths": widths, "hidden": 7, "norm": norm, "dropout": 0.5}
    network = build_network(make_spec(channels=channels, size=size, parameters=parameters)).eval()
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 10)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == widths
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == len(widths) * (norm == "batch")


def test_blocks_of_several_convolutions():
    parameters = {"widths": [4, 8], "convolutions": 2, "norm": "batch"}
    network = build_network(make_spec(parameters=parameters)).eval()
    shapes = [(m.in_channels, m.out_channels) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(3, 4), (4, 4), (4, 8), (8, 8)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 4
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_pooling_first_leaves_a_quarter_to_the_norm_and_the_relu():
    parameters = {"widths": [4, 8], "convolutions": 2, "norm": "batch", "pooling": "first"}
    network = build_network(make_spec(parameters=parameters))
    first = ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert [[type(layer).__name__ for layer in block] for block in network.features] == [first, first]
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_where_the_pooling_stands_changes_nothing_without_a_norm():
    last, first = (build_network(make_spec(parameters={"widths": [4], "pooling": at})) for at in ("last", "first"))
    first.load_state_dict(last.state_dict())
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(images), last(images))


def test_more_blocks_than_the_size_can_be_halved_are_refused():
    with pytest.raises(SpecError, match=r"parameters\.widths has 4 blocks; expected at most 3, .* of size 8"):
        SimpleCNN(channels=1, size=8, classes=2, widths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": [3]}, "width: is not a field that is known here"),
        ({"widths": []}, "widths: .* at least 1 item"),
        ({"hidden": True}, r"hidden: .* valid integer \(got True\)"),
        ({"widths": [0]}, r"widths\.0: .* greater than or equal to 1 \(got 0\)"),
        ({"norm": "layer"}, r"norm: .* 'none' or 'batch' \(got 'layer'\)"),
        ({"pooling": "none"}, r"pooling: .* 'last' or 'first' \(got 'none'\)"),
        ({"dropout": 1.0}, r"dropout: .* less than 1 \(got 1.0\)"),
    ],
)
def test_a_parameter_that_cannot_be_names_the_field_what_it_got_and_what_it_accepts(parameters, message):
    with pytest.raises(SpecError, match=f"network simple_cnn, parameters: {message}"):
        build_network(make_spec(parameters=parameters))


def test_an_unknown_network_names_what_is_accepted():
    with pytest.raises(
        SpecError, match="network is 'resnet18'; expected 'simple_cnn', 'whitened_cnn' or 'timm/<name>'"
    ):
        build_network(make_spec("resnet18"))


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [("resnet18", 1, 32, {}), ("vit_tiny_patch16_224", 3, 32, {"img_size": 32, "depth": 1})],
)
def test_timm_networks_are_built_with_their_parameters(name, channels, size, parameters):
    network = build_network(make_spec(f"timm/{name}", channels=channels, size=size, parameters=parameters))
    assert network.training
    assert network.eval()(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_an_unknown_timm_network_suggests_near_names():
    with pytest.raises(SpecError, match=r"near it are .*resnet18"):
        build_network(make_spec("timm/resnet_18"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", {"no_such": 1}), ("vit_tiny_patch16_224", {}), ("resnet18", {"num_classes": 3})],
)
def test_timm_parameters_that_cannot_be_are_refused_on_one_line(name, parameters):
    with pytest.raises(SpecError, match=f"network 'timm/{name}' cannot be built with parameters") as caught:
        build_network(make_spec(f"timm/{name}", parameters=parameters))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("simple_cnn", {"norm": "batch"}),
        ("whitened_cnn", {"widths": (4, 8)}),
        ("timm/resnet18", {}),
        ("timm/vit_tiny_patch16_224", {"img_size": 32, "depth": 1}),
        ("timm/swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 1, "depths": (1, 1, 1, 1)}),
    ],
)
def test_a_loaded_network_is_the_saved_one_to_the_bit_and_draws_no_random_numbers(tmp_path, name, parameters):
    spec = make_spec(name, size=32, parameters=parameters)
    saved = build_network(spec)
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    before = torch.get_rng_state()
    loaded = load_network(spec, tmp_path / "weights.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.training and [parameter.requires_grad for parameter in loaded.parameters()] == [
        parameter.requires_grad for parameter in saved.parameters()
    ]
    for (name, one), (_, other) in zip(loaded.named_buffers(), saved.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), saved.eval()(images))


def test_weights_of_another_precision_are_taken_over_as_they_are(tmp_path):
    state = {name: tensor.half() for name, tensor in build_network(make_spec()).state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_network(make_spec(), tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
