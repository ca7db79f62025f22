import base64
import json

import pytest
from PIL import Image

from handler.request import MAX_IMAGES
from imgcls.archive.testing import Request

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
OIP_NAMES = ["labels", "indices", "probabilities", "status", "error"]


@pytest.fixture(scope="module")
def images(encode) -> dict[str, bytes]:
    colors = {"red": RED, "green": GREEN, "blue": BLUE}
    return {name: encode(Image.new("RGB", (8, 8), color), "PNG") for name, color in colors.items()}


@pytest.fixture(scope="module")
def texts(images) -> dict[str, str]:
    return {name: base64.b64encode(data).decode() for name, data in images.items()} | {
        "text": base64.b64encode(b"no image").decode()
    }


def ask_oip(texts: list[str], **more: object) -> dict:
    return {"inputs": [{"name": "image", "shape": [len(texts)], "datatype": "BYTES", "data": texts}], **more}


def best(results: list[dict]) -> list[object]:
    return [result["predictions"][0]["label"] if result["status"] == 200 else result["status"] for result in results]


def test_many_images_are_answered_each_for_itself(served, texts):
    body = {"images": [texts["red"], texts["text"], {"image": texts["blue"], "top_k": 1}, "?", {"b64": "", "top_k": 0}]}
    [answer] = served.predict([body | {"top_k": 2}])
    found = answer.json()
    assert (answer.status, found["model"], found["version"]) == (200, "colors", "1.5")
    assert best(found["results"]) == ["red", 415, "blue", 400, 400]
    assert [len(result.get("predictions", ())) for result in found["results"]] == [2, 0, 1, 0, 0]
    assert found["results"][1]["error"]["code"] == "unsupported_image"
    assert all(result["error"]["reason"] for result in found["results"] if result["status"] != 200)


def test_the_files_of_a_form_are_answered_by_name(served, images):
    fields = {"b": images["blue"], "a": b"no image", "note": "two holidays", "c": images["green"], "top_k": "1"}
    [answer] = served.predict([fields])
    results = answer.json()["results"]
    assert [(result["name"], each) for result, each in zip(results, best(results), strict=True)] == [
        ("b", "blue"),
        ("a", 415),
        ("c", "green"),
    ]
    assert [len(result.get("predictions", ())) for result in results] == [1, 0, 1]


def test_kserve_v1_is_answered_with_predictions(served, texts):
    body = {"instances": [{"image": texts["red"]}, {"b64": texts["text"]}, texts["green"]]}
    [answer] = served.predict([Request(json.dumps(body).encode(), headers={"top_k": "1"})])
    assert (answer.status, list(answer.json())) == (200, ["predictions"])
    assert best(answer.json()["predictions"]) == ["red", 415, "green"]


def test_the_open_inference_protocol_is_answered_with_tensors(served, texts):
    [answer] = served.predict([ask_oip([texts["red"], texts["text"]], id="a-7", parameters={"top_k": 2})])
    found = answer.json()
    assert answer.status == 200
    assert {name: found[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "colors",
        "model_version": "1.5",
        "id": "a-7",
    }
    tensors = {tensor["name"]: tensor for tensor in found["outputs"]}
    assert list(tensors) == OIP_NAMES
    assert [(tensor["datatype"], tensor["shape"]) for tensor in tensors.values()] == [
        ("BYTES", [2, 2]),
        ("INT64", [2, 2]),
        ("FP32", [2, 2]),
        ("INT64", [2]),
        ("BYTES", [2]),
    ]
    assert tensors["labels"]["data"] == ["red", "green", "", ""]
    assert tensors["indices"]["data"] == [0, 1, -1, -1]
    assert tensors["probabilities"]["data"][0] > 0.9
    assert tensors["status"]["data"] == [200, 415]
    assert [text.partition(":")[0] for text in tensors["error"]["data"]] == ["", "unsupported_image"]


def test_the_open_inference_protocol_may_ask_for_some_tensors(served, texts):
    wanted = [{"name": "probabilities"}, {"name": "labels"}]
    good, mixed = served.predict(
        [ask_oip([texts["red"]], outputs=wanted), ask_oip([texts["red"], texts["text"]], outputs=wanted)]
    )
    assert [tensor["name"] for tensor in good.json()["outputs"]] == ["probabilities", "labels"]
    assert [tensor["name"] for tensor in mixed.json()["outputs"]] == ["probabilities", "labels", "status", "error"]
    assert "id" not in good.json()


def test_a_failure_has_the_status_and_the_shape_of_its_form(served, texts):
    bad = texts["text"]
    requests = [{"image": bad}, ask_oip([bad]), ask_oip([]), {"instances": 5}, {"images": [bad]}, {"instances": [bad]}]
    answers = served.predict(requests)
    assert [answer.status for answer in answers] == [415, 415, 400, 400, 200, 200]
    assert [answer.phrase for answer in answers[:4]] == ["unsupported_image"] * 2 + ["bad_request"] * 2
    assert answers[1].json()["error"].startswith("unsupported_image: the bytes are not an image")
    assert answers[3].json()["error"]["code"] == "bad_request"
    assert answers[4].json()["results"][0]["status"] == answers[5].json()["predictions"][0]["status"] == 415


def test_a_body_that_cannot_be_read_is_refused_in_its_form(served, texts):
    """The protocol has one string for an error; which form a broken body has, only its text tells."""
    whole = json.dumps(ask_oip([texts["red"]])).encode()
    broken = [
        whole[:-1],
        b"\xef\xbb\xbf" + whole[:-1],
        Request(whole[:-1], content_type="text/plain"),
        ask_oip([texts["red"]], images=[]),
    ]
    answers = served.predict([*broken, json.dumps({"instances": []}).encode()[:-1]])
    assert [answer.status for answer in answers] == [400] * 5
    assert all(answer.json()["error"].startswith("bad_request: the ") for answer in answers[:4])
    assert answers[4].json()["error"]["code"] == "bad_request"


def test_one_batch_holds_requests_of_every_form(served, images, texts):
    everything = [
        images["red"],
        {"images": [texts["green"], texts["text"], texts["blue"]]},
        {"image": texts["blue"]},
        b"no image",
        {"x": images["green"], "y": images["red"]},
        {"instances": [texts["red"], texts["green"]]},
        {"images": []},
        ask_oip([texts["blue"], texts["red"]]),
        Request(images["green"], kind="explain"),
        {"my file": images["blue"]},
    ]
    answers = served.predict(everything)
    assert [answer.status for answer in answers] == [200, 200, 200, 415, 200, 200, 400, 200, 200, 200]
    found = [answer.json() for answer in answers]
    assert [found[index]["predictions"][0]["label"] for index in (0, 2, 8, 9)] == ["red", "blue", "green", "blue"]
    assert best(found[1]["results"]) == ["green", 415, "blue"]
    assert best(found[4]["results"]) == ["green", "red"]
    assert best(found[5]["predictions"]) == ["red", "green"]
    assert found[7]["outputs"][0]["data"][::3] == ["blue", "red"]
    assert found[8]["explanation"]["label"] == "green"
    assert answers == [served.predict([request])[0] for request in everything]


def test_the_network_sees_no_more_images_at_a_time_than_a_batch_holds(served, texts):
    sizes = []
    with served.active():
        classifier = served.service._entry_point.__self__._classifier
        whole, classifier.batch_size = classifier.classifier.probabilities, 16

        def count(pixels):
            sizes.append(len(pixels))
            return whole(pixels)

        classifier.classifier.probabilities = count
        try:
            [answer] = served.predict([{"images": [texts["red"], texts["blue"]] * (MAX_IMAGES // 2)}])
        finally:
            del classifier.classifier.probabilities
    assert best(answer.json()["results"]) == ["red", "blue"] * (MAX_IMAGES // 2)
    assert sizes == [16] * (MAX_IMAGES // 16)


def test_too_many_images_are_refused_and_the_others_answered(served, images, texts):
    bad, good = served.predict([{"images": [texts["red"]] * (MAX_IMAGES + 1)}, images["red"]])
    assert (bad.status, bad.phrase, good.status) == (413, "too_many_images", 200)
    assert bad.json()["error"]["reason"].startswith("the request holds 65 images; at most 64")


def test_a_body_of_curls_default_type_is_told_so(served, texts):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    [answer] = served.predict([Request(fields={'{"images": ["QUJD"]}': ""}, headers=form)])
    assert answer.status == 400
    assert answer.json()["error"]["reason"].startswith("the body came as application/x-www-form-urlencoded; send")


def test_a_client_that_asks_as_the_management_api_does_spoils_nobodys_batch(served, images):
    sly = Request(images["red"], headers={"describe": "True"})
    answers = [*served.predict([sly, Request(images["blue"])]), *served.predict([sly])]
    assert [answer.json()["predictions"][0]["label"] for answer in answers] == ["red", "blue", "red"]
    assert served.describe().json()["engine"]
