import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from handler.image_classifier import choose_device
from imgcls.archive.testing import Request
from imgcls.errors import ArchiveError
from model.spec import ModelSpec

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(color, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), color)


def copy_changed(unpacked: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Copies an unpacked archive and changes its weights behind the back of its golden inputs."""
    shutil.copytree(unpacked, folder)
    state = load_file(folder / "weights.safetensors")
    change(state)
    save_file(state, folder / "weights.safetensors")
    return folder


def test_an_answer_is_ranked_and_names_model_and_version(served, encode):
    [answer] = served.predict([encode(plain(GREEN), "PNG")])
    assert (answer.status, answer.content_type) == (200, "application/json")
    answer = answer.json()
    assert (answer["model"], answer["version"]) == ("colors", "1.5")
    assert [line["label"] for line in answer["predictions"]] == ["green", "red", "blue"]
    assert [line["index"] for line in answer["predictions"]] == [1, 0, 2]
    exponentials = np.exp([5, 0, 0])
    probabilities = [line["probability"] for line in answer["predictions"]]
    assert probabilities == pytest.approx(exponentials / exponentials.sum(), abs=1e-5)


def test_each_item_of_a_mixed_batch_is_answered_for_itself(served, encode):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    batch = {
        "red": (encode(plain(RED), "JPEG"), 200),
        "grayscale": (encode(plain(99, "L"), "PNG"), 200),
        "RGBA": (encode(plain((*BLUE, 255), "RGBA"), "PNG"), 200),
        "CMYK": (encode(plain(GREEN).convert("CMYK"), "JPEG"), 200),
        "16-bit": (encode(np.full((8, 8), 40_000, np.uint16), "PNG"), 200),
        "truncated": (encode(noise, "JPEG")[:1_000], 422),
        "empty": (b"", 400),
        "text": (b"hello", 415),
        "blue": (encode(plain(BLUE), "WEBP"), 200),
    }
    answers = dict(zip(batch, served.predict([data for data, _ in batch.values()]), strict=True))
    assert {name: answer.status for name, answer in answers.items()} == {
        name: status for name, (_, status) in batch.items()
    }
    good = {name: answer.json() for name, answer in answers.items() if answer.status == 200}
    best = {name: body["predictions"][0]["label"] for name, body in good.items()}
    assert [best[name] for name in ("red", "RGBA", "CMYK", "blue")] == ["red", "blue", "green", "blue"]
    errors = {name: answer.json()["error"] for name, answer in answers.items() if answer.status != 200}
    codes = {name: error["code"] for name, error in errors.items()}
    assert codes == {"truncated": "undecodable_image", "empty": "empty_image", "text": "unsupported_image"}
    assert codes == {name: answers[name].phrase for name in codes}
    assert all(error["reason"] for error in errors.values())


def test_a_batch_of_bad_images_only_is_answered(served):
    assert [answer.status for answer in served.predict([b"", b"text"])] == [400, 415]


def test_an_image_is_answered_alike_alone_and_in_a_batch(served, encode):
    images = [encode(plain(color), "PNG") for color in (RED, GREEN, BLUE, (90, 80, 70))]
    assert served.predict(images) == [served.predict([image])[0] for image in images]


def test_json_and_forms_are_answered_as_raw_bytes_are(served, encode):
    image = encode(plain(RED), "PNG")
    text = base64.b64encode(image).decode()
    requests = [
        image,
        {"data": image},
        {"my file.png": image},
        {"image": text},
        {"image": f"data:image/png;base64,{text}"},
        json.dumps({"image": text}).encode(),
    ]
    answers = served.predict(requests)
    assert [answer.status for answer in answers] == [200] * 6
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    "request_", [{"image": "?"}, {"image": "ÄÖ"}, [1, 2], 5, None, b'{"image": ', b'{"a":' * 100_000]
)
def test_a_request_that_cannot_be_read_leaves_the_others_their_answers(served, encode, request_):
    bad, good = served.predict([request_, encode(plain(RED), "PNG")])
    assert (bad.status, bad.json()["error"]["code"], good.status) == (400, "bad_request", 200)


def test_top_k_is_taken_from_header_query_and_json(served, encode):
    image = encode(plain(RED), "PNG")
    body = json.dumps({"image": base64.b64encode(image).decode(), "top_k": 1}).encode()
    requests = [
        Request(image, headers={"top_k": "1"}),
        Request(image, query={"top_k": "2"}),
        Request(body, content_type="application/json", query={"top_k": "2"}),
        Request(image, query={"top_k": "99"}),
    ]
    assert [len(answer.json()["predictions"]) for answer in served.predict(requests)] == [1, 2, 1, 3]
    [answer] = served.predict([Request(image, headers={"top_k": "many"})])
    assert answer.status == 400
    assert answer.json()["error"]["reason"] == "top_k is 'many'; expected a whole number from 1"


def test_two_classes_are_enough_for_the_default_top_k(tmp_path, write_run, load, encode, unpacked):
    spec = ModelSpec(
        parameters={"widths": [3], "hidden": 3}, size=4, resize=4, mean=(0,) * 3, std=(1,) * 3, classes=("cat", "dog")
    )
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    run = write_run(tmp_path / "run", spec=spec)
    for name in ("weights.safetensors", "spec.yaml", "index_to_name.json"):
        shutil.copyfile(run / name, folder / name)
    golden = [{"file": "0.png", "index": 0, "label": "cat", "probability": 0.5}]
    (folder / "golden" / "expected.json").write_text(json.dumps(golden))
    [answer] = load(folder).predict([encode(plain(RED), "PNG")])
    assert [line["label"] for line in answer.json()["predictions"]] == ["cat", "dog"]


def test_an_image_that_is_answered_with_nan_gets_500_alone(tmp_path, load, encode, unpacked):
    def overflow_on_red(state: dict[str, Tensor]) -> None:
        state["features.0.0.weight"][0] *= 3e38
        state["classifier.1.weight"][0] *= 1e3

    served = load(copy_changed(unpacked, tmp_path / "archive", overflow_on_red))
    answers = served.predict([encode(plain(color), "PNG") for color in (BLUE, RED, GREEN)])
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert answers[1].json()["error"]["code"] == "non_finite_answer"
    assert answers[2].json()["predictions"][0]["label"] == "green"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["classifier.4.bias"].fill_(float("nan")),
        lambda state: state["classifier.4.weight"].neg_(),
        lambda state: state["classifier.4.weight"].mul_(0.5),
    ],
    ids=["NaN", "another class", "another probability"],
)
def test_a_worker_that_does_not_compute_what_was_tested_refuses_to_start(tmp_path, load, unpacked, change):
    with pytest.raises(
        ArchiveError, match=r"NumericError: engine eager: golden input 0\.png: .*does not compute what was tested"
    ):
        load(copy_changed(unpacked, tmp_path / "archive", change))


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("weights.safetensors", "", "WeightsError"),
        ("spec.yaml", "size: 4", "SpecError"),
        ("index_to_name.json", '{"0": "red"}', "SpecError"),
        ("golden/expected.json", "[]", "SpecError"),
        ("model-config.yaml", "handler: {topk: 3}", "SpecError"),
    ],
)
def test_an_archive_that_is_not_in_order_is_refused_at_the_start(tmp_path, load, unpacked, file, content, error):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / file).write_text(content)
    with pytest.raises(ArchiveError, match=f"{error}: .*{Path(file).name}") as caught:
        load(folder)
    assert "ModelError" in {kind.__name__ for kind in type(caught.value.__cause__).__mro__}  # the archive's own


@pytest.mark.parametrize("name", ["golden/expected.json", "golden/0.png"])
def test_a_golden_input_that_is_missing_is_named_at_the_start(tmp_path, load, unpacked, name):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / name).unlink()
    with pytest.raises(ArchiveError, match=f"SpecError: .*{name}: a golden input cannot be read: No such file"):
        load(folder)


def test_a_batch_size_that_torchserve_ignores_is_ignored(tmp_path, load, encode, unpacked):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / "model-config.yaml").write_text("batchSize: eight")
    assert load(folder, batch_size=2).predict([encode(plain(RED), "PNG")] * 2)[1].status == 200


def test_the_byte_limit_of_the_configuration_counts(tmp_path, load, encode, unpacked):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / "model-config.yaml").write_text("batchSize: 2\nhandler: {max_bytes: 200}")
    large = encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), "PNG")
    assert [answer.status for answer in load(folder).predict([encode(plain(RED), "PNG"), large])] == [200, 413]


def test_names_that_an_operator_changed_are_served(tmp_path, load, encode, unpacked):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / "index_to_name.json").write_text('{"0": "rot", "1": "grün", "2": "blau"}', encoding="utf-8")
    [answer] = load(folder).predict([encode(plain(GREEN), "PNG")])
    assert answer.json()["predictions"][0]["label"] == "grün"


@pytest.mark.parametrize("file", ["model/images.py", "handler/request.py"])
def test_code_that_is_not_the_archives_is_refused(tmp_path, load, unpacked, file):
    other = tmp_path / "other"
    for package in ("model", "handler"):
        shutil.copytree(unpacked / package, other / package)
    with (other / file).open("a") as code:
        code.write("# changed\n")
    with pytest.raises(ArchiveError, match=rf"other/{file} was imported and differs from {file} .* off PYTHONPATH"):
        load(unpacked, python_path=[other])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_torch_cannot_use_is_a_clear_error(load, unpacked):
    with pytest.raises(ArchiveError, match=r"gave this worker GPU 0, but torch .* cannot use CUDA: .*number_of_gpu=0"):
        load(unpacked, gpu_id=0)
    assert choose_device(None) == choose_device(-1) == "cpu"


def test_the_pixel_limit_of_the_configuration_counts(tmp_path, load, encode, unpacked):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    (folder / "model-config.yaml").write_text("batchSize: 2\nhandler: {max_pixels: 64, threads: 1, top_k: 1}")
    served = load(folder)
    answers = served.predict([encode(plain(RED), "PNG"), encode(Image.new("RGB", (9, 8)), "PNG")])
    assert [answer.status for answer in answers] == [200, 413]
    assert len(answers[0].json()["predictions"]) == 1
    with served.active():
        assert torch.get_num_threads() == 1
