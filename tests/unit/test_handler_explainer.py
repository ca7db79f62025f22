"""model/explain.py on networks of several kinds: which layer and method it takes, and that they are right."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

from model.engines.eager import PixelNetwork
from model.engines.kinds import KINDS
from model.explain import Explainer, Output, choose_feature_layer
from model.network import build_network
from model.spec import ModelSpec


def make(network: str, *, size: int, **parameters: object) -> tuple[PixelNetwork, ModelSpec]:
    torch.manual_seed(0)
    spec = ModelSpec(
        network=network,
        parameters=parameters,
        size=size,
        resize=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        classes=("a", "b", "c"),
    )
    kind = KINDS["eager"]
    return PixelNetwork(build_network(spec), spec, kind=kind, layout=torch.channels_last), spec


@pytest.mark.parametrize(
    ("network", "size", "parameters", "layer", "shape"),
    [
        ("simple_cnn", 32, {"widths": [4, 4]}, "features", (8, 8)),
        ("simple_cnn", 64, {"widths": [4]}, "features", (16, 16)),  # of 32 x 32
        ("whitened_cnn", 32, {"widths": [4, 4]}, "features", (7, 7)),
        ("whitened_cnn", 32, {"widths": [4, 4], "views": 2}, "input", (16, 16)),  # it has a map for each view
        ("timm/resnet18", 128, {}, "layer4", (4, 4)),
        ("timm/resnet50", 32, {}, "layer2", (4, 4)),  # layer4 and layer3 are too small, and a shortcut passes layer3's
        ("timm/efficientnet_lite0", 128, {}, "bn2", (4, 4)),
        ("timm/convnext_atto", 128, {}, "norm_pre", (4, 4)),
        ("timm/swin_tiny_patch4_window7_224", 224, {"depths": [1, 1, 1, 1], "embed_dim": 12}, "norm", (7, 7)),
        ("timm/vit_tiny_patch16_224", 224, {"depth": 1, "embed_dim": 12}, "input", (16, 16)),
    ],
)
def test_the_last_feature_map_is_explained_or_the_input(network, size, parameters, layer, shape):
    module, spec = make(network, size=size, **parameters)
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    explainer = Explainer(module, spec)
    with torch.inference_mode():  # the handler may be called like this
        found = explainer.explain(pixels, 1)
    assert (found.layer, found.heat_map.shape) == (layer, shape)
    assert found.method == ("integrated_gradients" if layer == "input" else "hires_cam")
    assert found.heat_map.dtype == np.float32
    assert found.heat_map.min() >= 0
    assert found.heat_map.max() in (0, 1)
    np.testing.assert_array_equal(explainer.explain(pixels, 1).heat_map, found.heat_map)


def test_where_the_map_is_averaged_it_is_grad_cam():
    module, spec = make("timm/resnet18", size=128)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    layer = module.network.get_submodule("layer4")
    for target in range(3):
        batch = torch.from_numpy(pixels[None])
        cam = LayerGradCam(module, layer).attribute(batch, target=target, relu_attributions=True)[0, 0].detach()
        expected = (cam / cam.max().clamp(min=1e-30)).numpy()
        np.testing.assert_allclose(Explainer(module, spec).explain(pixels, target).heat_map, expected, atol=1e-4)


def test_integrated_gradients_find_the_pixels_that_decide():
    """A network of tokens by hand: the class is the brightness of one patch of the image."""

    class Patch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Flatten(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.tokens(images[:, :, 8:12, 20:24]).mean(dim=(1, 2))  # (B, 3, 16) on its way
            return torch.stack([tokens, -tokens, 0 * tokens], dim=1)

    _, spec = make("simple_cnn", size=32)
    module = PixelNetwork(Patch(), spec, kind=KINDS["eager"], layout=torch.contiguous_format)
    found = Explainer(module, spec).explain(np.full((3, 32, 32), 255, np.uint8), 0)
    expected = np.zeros((16, 16), np.float32)
    expected[4:6, 10:12] = 1
    assert (found.method, found.layer) == ("integrated_gradients", "input")
    np.testing.assert_allclose(found.heat_map, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "layer"),
    [
        ([Output("conv", (1, 8, 7, 7)), Output("pool", (1, 8, 1, 1)), Output("fc", (1, 3))], "conv"),
        ([Output("stem", (1, 8, 14, 14)), Output("blocks", (1, 196, 8)), Output("head", (1, 3))], None),
        ([Output("stage.attention", (1, 49, 8)), Output("stage", (1, 8, 7, 7))], "stage"),
        ([Output("s", (1, 8, 8, 8)), Output("b.conv1", (1, 8, 8, 8)), Output("b", (1, 8, 4, 4))], "b"),
        ([Output("s", (1, 8, 4, 4)), Output("b.conv1", (1, 8, 4, 4)), Output("b", (1, 8, 2, 2))], "s"),
        ([Output("a.s", (1, 8, 4, 4)), Output("a.t", (1, 8, 2, 2)), Output("a", (1, 8, 2, 2), True)], "a.s"),
        ([Output("windows", (64, 8, 7, 7)), Output("wide", (1, 8, 7, 9))], None),
        ([], None),
    ],
)
def test_the_layer_is_chosen_by_what_the_modules_give(outputs, layer):
    assert choose_feature_layer(outputs) == layer
