"""/explanations, on a network whose answer is known.

Bright pixels on the left speak for one class, on the right for the other: the heat must lie on the square of its side.
"""

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgcls.archive.testing import Request, ServedArchive, load_archive
from model.spec import ModelSpec

SIZE = 32
SIDES = ModelSpec(
    parameters={"widths": [2], "hidden": 2},
    channels=1,
    size=SIZE,
    resize=SIZE,
    mean=(0.0,),
    std=(1.0,),
    classes=("left", "right"),
)
SQUARES = {"left": (slice(8, 14), slice(4, 10)), "right": (slice(20, 26), slice(22, 28))}  # rows, columns


def look_at_the_sides(state: dict[str, Tensor]) -> None:
    for tensor in state.values():
        tensor.zero_()
    state["features.0.0.weight"][0, 0, 1, 1] = 1.0
    half = torch.zeros(2, 2, SIZE // 2, SIZE // 2)  # hidden, channels, rows, columns
    half[0, 0, :, : SIZE // 4] = half[1, 0, :, SIZE // 4 :] = 1.0
    state["classifier.1.weight"].copy_(half.flatten(1))
    state["classifier.4.weight"].copy_(torch.eye(2))


def draw(*sides: str, level: int = 255) -> np.ndarray:
    image = np.full((SIZE, SIZE), 20, np.uint8)
    for side in sides:
        image[SQUARES[side]] = level
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, unpacked: Path, write_run: Callable) -> Path:
    """The unpacked archive of the network of sides; read only."""
    root = tmp_path_factory.mktemp("sides")
    run = write_run(root / "run", spec=SIDES, change=look_at_the_sides)
    shutil.copytree(unpacked, root / "archive")
    for name in ("weights.safetensors", "spec.yaml", "index_to_name.json"):
        shutil.copyfile(run / name, root / "archive" / name)
    golden = [{"file": "0.png", "index": 0, "label": "left", "probability": 0.5}]
    (root / "archive" / "golden" / "expected.json").write_text(json.dumps(golden))
    return root / "archive"


@pytest.fixture(scope="module")
def sides(folder: Path, unchecked: dict[str, str]) -> Iterator[ServedArchive]:
    with load_archive(folder, batch_size=16, environment=unchecked) as served:
        yield served


@pytest.fixture
def both(encode: Callable) -> bytes:
    return encode(draw("left", "right"), "PNG")


def find_peak(explanation: dict) -> str:
    """Returns the side on whose square the heat lies; fails where there is any beside it."""
    heat = np.array(explanation["heat_map"])
    assert list(heat.shape) == explanation["size"] == [16, 16]
    assert heat.max() == 1.0
    inside = {
        name: heat[rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2]
        for name, (rows, columns) in SQUARES.items()
    }
    shares = {name: part.sum() for name, part in inside.items()}
    best = max(shares, key=shares.get)
    assert (inside[best] > 0.95).all()
    assert heat.sum() - shares[best] < 0.1 * 8 * 16  # the dark background counts 20 / 255, on its own side only
    return best


@pytest.mark.parametrize("side", SQUARES)
def test_the_heat_lies_on_the_square_that_decides(sides, encode, side):
    [answer] = sides.explain([encode(draw(side), "PNG")])
    found = answer.json()
    assert (answer.status, found["predictions"][0]["label"]) == (200, side)
    explanation = found["explanation"]
    assert (explanation["method"], explanation["layer"], explanation["label"]) == ("hires_cam", "features", side)
    assert explanation["probability"] == found["predictions"][0]["probability"]
    assert find_peak(explanation) == side


@pytest.mark.parametrize(("target", "side"), [("left", "left"), ("right", "right"), (1, "right"), ("0", "left")])
def test_the_class_that_was_asked_for_is_explained(sides, both, target, side):
    text = base64.b64encode(both).decode()
    answers = sides.explain(
        [
            {"image": text, "target": target},
            {"image": both, "target": str(target)},
            Request(both, headers={"Target": str(target)}),
        ]
    )
    for answer in answers:
        assert find_peak(answer.json()["explanation"]) == answer.json()["explanation"]["label"] == side


def test_an_unknown_class_is_a_bad_request_of_its_own(sides, both):
    bad, good = sides.explain([Request(both, headers={"target": "up"}), both])
    assert (bad.status, good.status) == (400, 200)
    expected = "target is 'up'; expected an index from 0 to 1, or a label such as 'left'"
    assert bad.json()["error"]["reason"] == expected


def test_an_image_without_evidence_has_a_cold_map(sides, encode):
    [answer] = sides.explain([encode(np.zeros((SIZE, SIZE), np.uint8), "PNG")])
    assert answer.status == 200
    assert not np.array(answer.json()["explanation"]["heat_map"]).any()


def test_a_picture_shows_the_heat_over_the_image(sides, both):
    request = Request(both, headers={"Accept": "image/png", "target": "right"})
    [answer] = sides.explain([request])
    assert (answer.status, answer.content_type) == (200, "image/png")
    picture = Image.open(io.BytesIO(answer.body))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (256, 256))
    assert {key: picture.text[key] for key in ("label", "index", "method", "layer")} == {
        "label": "right",
        "index": "1",
        "method": "hires_cam",
        "layer": "features",
    }
    colors = np.asarray(picture).astype(int)
    left, right = colors[88, 56], colors[184, 200]  # the middles of the squares, of which one speaks for the class
    assert (left == 255).all()
    assert right[0] > 240 and right[1] > 200 and right[2] < 150  # yellow over white


def test_a_picture_that_cannot_be_drawn_is_an_error_in_json(sides, both):
    text = base64.b64encode(both).decode()
    png = {"accept": "image/png"}
    many = Request(json.dumps({"images": [text]}).encode(), content_type="application/json", headers=png)
    bad, refused = sides.explain([Request(b"no image", headers=png), many])
    assert (bad.status, bad.content_type) == (415, "application/json")
    assert (refused.status, refused.json()["error"]["code"]) == (406, "not_acceptable")


def test_lists_are_explained_image_by_image(sides, encode):
    texts = [base64.b64encode(encode(draw(side), "PNG")).decode() for side in SQUARES]
    entries = [texts[0], {"image": texts[1]}, "?"]
    many, kserve = sides.explain([{"images": entries}, {"instances": entries}])
    results = many.json()["results"]
    assert [result["status"] for result in results] == [200, 200, 400]
    assert [find_peak(result["explanation"]) for result in results[:2]] == list(SQUARES)
    found = kserve.json()
    assert [result["status"] for result in found["predictions"]] == [200, 200, 400]
    assert [explanation and find_peak(explanation) for explanation in found["explanations"]] == [*SQUARES, None]


def test_predictions_are_the_same_before_between_and_after_explanations(sides, both, encode):
    images = [both, encode(draw("left"), "PNG"), encode(draw(), "PNG")]
    before = sides.predict(images)
    mixed = sides.predict([*images, *(Request(image, kind="explain") for image in images)])
    assert before == mixed[:3] == sides.predict(images)
    assert [answer.json()["predictions"] for answer in mixed[3:]] == [answer.json()["predictions"] for answer in before]


def test_explaining_leaves_no_gradients_hooks_or_modes_behind(folder, load, both):
    served = load(folder, batch_size=4)
    served.explain([both] * 2)
    with served.active():
        handler = served.service._entry_point.__self__._classifier
        explainer = handler.explanations._explainer._module
        assert explainer is not handler.choice.engine.module
        for module in (explainer, handler.choice.engine.module):
            assert not module.training
            assert all(parameter.grad is None for parameter in module.parameters())
            assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
        assert not any(parameter.requires_grad for parameter in explainer.parameters())
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_network_that_cannot_be_loaded_fails_its_explanations_only(tmp_path, folder, load, both):
    copy = shutil.copytree(folder, tmp_path / "archive")
    served = load(copy, batch_size=4)
    assert served.predict([both])[0].status == 200
    weights = copy / "weights.safetensors"
    good = weights.read_bytes()
    weights.unlink()  # a new file, as the old one is mapped into memory
    weights.write_bytes(b"damaged")
    failed, answered = served.predict([Request(both, kind="explain"), both])
    assert (failed.status, failed.json()["error"]["code"], answered.status) == (500, "explanation_failed", 200)
    assert "WeightsError" in failed.json()["error"]["reason"]
    weights.write_bytes(good)
    assert served.explain([both])[0].status == 200


def test_without_captum_explanations_are_not_offered(folder, load, both, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    failed, answered = load(folder, batch_size=2).predict([Request(both, kind="explain"), both])
    assert (failed.status, failed.json()["error"]["code"], answered.status) == (501, "not_offered", 200)
    assert "package captum;" in failed.json()["error"]["reason"]


def test_a_batch_that_explains_for_too_long_says_so_and_predicts(folder, load, both):
    served = load(folder, batch_size=4)
    with served.active():
        import handler.image_classifier

        handler.image_classifier.start_deadline = lambda: 0.0
    late, answered = served.predict([Request(both, kind="explain"), both])
    assert (late.status, late.json()["error"]["code"], answered.status) == (503, "out_of_time", 200)


def test_an_explanation_that_is_not_finite_is_an_error(tmp_path, folder, load, both):
    copy = shutil.copytree(folder, tmp_path / "archive")
    served = load(copy, batch_size=2)
    state = load_file(copy / "weights.safetensors")
    state["classifier.4.weight"] *= float("nan")
    (copy / "weights.safetensors").unlink()
    save_file(state, copy / "weights.safetensors")
    [answer] = served.explain([both])
    assert (answer.status, answer.json()["error"]["code"]) == (500, "explanation_failed")
    json.loads(answer.body, parse_constant=pytest.fail)


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), 507), (ValueError("odd heat"), 500)])
def test_a_picture_that_cannot_be_drawn_fails_alone_in_its_batch(sides, both, error, status, monkeypatch):
    def fail(*args, **options):
        raise error

    with sides.active():
        handler = sides.service._entry_point.__self__._classifier
    monkeypatch.setattr(handler.explanations, "draw", fail)
    picture = Request(both, headers={"Accept": "image/png"}, kind="explain")
    answers = sides.predict([both, picture, Request(both, kind="explain")])
    assert [answer.status for answer in answers] == [200, status, 200]
