import base64
import json

import pytest
from ts.context import RequestProcessor

from handler.errors import DeadlineExceededError, RequestError
from handler.options import Options
from handler.request import MAX_EXPLAINED, MAX_IMAGES, Form, Request, read_request

IMAGE = b"\xff\xd8\xff any bytes"
BASE64 = base64.b64encode(IMAGE).decode()
LABELS = ("cat", "dog", "7", "twin", "twin")
PNG = {"content-type": "image/png"}


def read(item: dict, **headers: object) -> Request:
    """Reads an item; a header whose value is a dict is the type of a part."""
    return read_request(item, RequestProcessor(headers), defaults=Options(top_k=5), labels=LABELS)


def explain(item: dict, **headers: object) -> Request:
    return read(item, explain="True", **headers)


def list_images(request: Request) -> list[bytes]:
    assert request.error is None, request.error
    return [image.source.read() for image in request.images]


def refuse(item: dict, **headers: object) -> RequestError:
    request = read(item, **headers)
    assert request.error is not None
    assert not request.images
    return request.error


def tensor(*values: object, **changes: object) -> dict:
    return {"name": "image", "shape": [len(values)], "datatype": "BYTES", "data": list(values)} | changes


@pytest.mark.parametrize(
    "item",
    [
        {"body": IMAGE},
        {"body": bytearray(IMAGE)},
        {"data": IMAGE},
        {"image": IMAGE},
        {"file": IMAGE, "note": "x"},
        {"holiday.jpg": IMAGE, "top_k": "5"},
        {"body": {"image": BASE64}},
        {"body": {"b64": BASE64}},
        {"body": {"image_bytes": {"b64": BASE64}}},
        {"body": {"data": "data:image/jpeg;base64," + BASE64}},
        {"body": {"image": BASE64[:9] + "\r\n " + BASE64[9:]}},
        {"body": json.dumps({"image": BASE64}).encode()},
        {"body": bytearray(b" \n" + json.dumps({"top_k": 5, "image": BASE64}).encode())},
        {"body": b"\xef\xbb\xbf" + json.dumps({"image": BASE64}).encode()},
        {"body": json.dumps({"image": BASE64})},
    ],
)
def test_one_image_is_found_in_every_kind_of_request(item):
    request = read(item)
    assert (request.form, list_images(request)) == (Form.IMAGE, [IMAGE])
    assert request.images[0].options == Options(top_k=5)


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"images": [BASE64, {"image": BASE64}, {"b64": BASE64, "top_k": 2}]}, Form.IMAGES),
        ({"instances": [{"image": BASE64}, {"b64": BASE64}, {"data": BASE64}]}, Form.KSERVE),
        ({"instances": [BASE64, {"image_bytes": {"b64": BASE64}}, {"b64": BASE64}]}, Form.KSERVE),
        ({"inputs": [tensor(BASE64, BASE64, BASE64)]}, Form.OPEN_INFERENCE),
        ({"inputs": [tensor([BASE64], [BASE64], [BASE64], shape=[3, 1])]}, Form.OPEN_INFERENCE),
        ({"inputs": [tensor(BASE64, BASE64, BASE64, shape=[1, 3])]}, Form.OPEN_INFERENCE),
        ({"inputs": [tensor([[BASE64], [BASE64], [BASE64]], shape=[1, 3, 1])]}, Form.OPEN_INFERENCE),
    ],
)
def test_several_images_are_found_in_every_list(body, form):
    for item in ({"body": body}, {"body": json.dumps(body).encode()}):
        request = read(item)
        assert (request.form, list_images(request)) == (form, [IMAGE] * 3)


def test_the_files_of_a_form_are_several_images_by_name():
    item = {"a.jpg": IMAGE, "note": b"text", "top_k": b"2", "b.jpg": b"other"}
    request = read(item, **{"a.jpg": PNG, "b.jpg": PNG, "note": {"content-type": ""}, "top_k": {"content-type": ""}})
    assert (request.form, request.names) == (Form.IMAGES, ("a.jpg", "b.jpg"))
    assert list_images(request) == [IMAGE, b"other"]
    assert {image.options.top_k for image in request.images} == {2}


def test_a_file_of_a_form_that_is_called_as_a_header_is_one_too():
    photo = b"\x89PNG\xff"  # which is no text
    item = {"Host": photo, "guest": IMAGE, "date": b"a caption"}
    request = read(item, guest=PNG, Host="127.0.0.1:8080", date="Sat, 28 Nov 2026 07:00:00 GMT")
    assert (request.names, list_images(request)) == (("Host", "guest"), [photo, IMAGE])


def test_one_file_among_text_fields_is_one_image():
    request = read({"image": b"a caption", "photo": IMAGE}, photo=PNG, image={"content-type": ""})
    assert (request.form, list_images(request)) == (Form.IMAGE, [IMAGE])


@pytest.mark.parametrize(("encoding", "is_fine"), [("gzip", False), ("BR", False), ("identity", True), ("", True)])
def test_a_compressed_body_is_told_so(encoding, is_fine):
    headers = {"Content-Encoding": encoding}
    if is_fine:
        assert list_images(read({"body": IMAGE}, **headers)) == [IMAGE]
    else:
        assert "which is not undone; send it as it is" in str(refuse({"body": IMAGE}, **headers))


def test_an_empty_body_is_an_empty_image():
    assert list_images(read({"body": b""})) == [b""]


@pytest.mark.parametrize("text", ["just text", "\ud800"])
def test_text_is_left_to_the_image_decoder_to_refuse(text):
    assert isinstance(list_images(read({"body": text}))[0], bytes)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, r"holds no image; .* \(got the fields: none\)"),
        ({"one": IMAGE, "two": IMAGE}, r"the request holds no image; .* \(got the fields: one, two\)"),
        ({"data": IMAGE, "image": IMAGE}, r"the request holds 2 images \(data, image\); send one, or several as"),
        ({"body": {}}, r"the JSON object holds no image; .* \(got the fields: none\)"),
        ({"body": b'{"image": "QUJD"'}, "starts like JSON but cannot be parsed"),
        ({"body": b'{"image": "\xff"}'}, "starts like JSON but cannot be parsed"),
        ({"body": b'{"a":' * 100_000}, "starts like JSON but cannot be parsed"),
        ({"body": [BASE64]}, "the JSON body is list; expected an object"),
        ({"body": 10**12}, "the JSON body is int; expected an object"),
        ({"body": None}, "the JSON body is NoneType; expected an object"),
        ({"body": {"images": []}}, "holds no images"),
        ({"body": {"images": BASE64}}, "images is str; expected a list"),
        ({"body": {"instances": None}}, "instances is NoneType; expected a list"),
        ({"body": {"images": [BASE64], "instances": [BASE64]}}, "has images and instances; expected one of them"),
        ({"body": {"image": BASE64, "images": [BASE64]}}, "has images and image; expected one of them"),
        ({"body": {"inputs": [tensor(BASE64)], "b64": BASE64}}, "has inputs and b64; expected one of them"),
        ({"body": {"inputs": []}}, "inputs holds 0 tensors; expected one"),
        ({"body": {"inputs": [tensor(BASE64)] * 2}}, "inputs holds 2 tensors; expected one"),
        ({"body": {"inputs": {}}}, "inputs holds dict"),
        ({"body": {"inputs": [tensor(BASE64, shape=[2])]}}, "holds 1 images; expected 2, by its shape"),
        ({"body": {"inputs": [tensor(BASE64, shape=[-1])]}}, r"shape is \[-1\]; expected a list"),
        ({"body": {"inputs": [tensor(BASE64, shape=[10**40])]}}, "shape is .* expected a list"),
        ({"body": {"inputs": [tensor(BASE64, shape=[1] * 9)]}}, "shape is .* expected a list"),
        ({"body": {"inputs": [tensor(shape=[0])]}}, "holds no images"),
        (
            {"body": {"inputs": [tensor([BASE64], [BASE64] * 3, shape=[2, 2])]}},
            r"not nested as its shape \[2, 2\] says",
        ),
        ({"body": {"inputs": [tensor([BASE64], BASE64, shape=[2, 1])]}}, r"not nested as its shape \[2, 1\] says"),
        ({"body": {"image": BASE64, "parameters": [{"top_k": 1}]}}, "parameters is list; expected an object"),
        ({"body": {"instances": [BASE64], "parameters": "top_k=1"}}, "parameters is str; expected an object"),
        (
            {"body": {"inputs": [tensor(BASE64) | {"parameters": [{"top_k": 1}]}]}},
            r"inputs\[0\]\.parameters is list; expected an object",
        ),
        (
            {"body": {"inputs": [tensor(BASE64)], "outputs": [{"name": "labels", "parameters": {"top_k": 1}}]}},
            r"outputs\[0\]\.parameters has top_k; options stand in the parameters of the request",
        ),
        ({"body": {"inputs": [tensor(BASE64)], "id": 7}}, "id is int; expected a string"),
        ({"body": {"inputs": [tensor(BASE64)], "outputs": [{"name": "logits"}]}}, "outputs is .*expected a list of"),
        ({"body": {"inputs": [tensor(BASE64)], "outputs": 5}}, "outputs is 5; expected a list of"),
    ],
)
def test_a_request_that_is_malformed_as_a_whole_says_what_is_wrong(item, message):
    error = refuse(item)
    assert (error.status, error.code) == (400, "bad_request")
    with pytest.raises(RequestError, match=message):
        raise error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"image": 7}, "the image in the JSON body is int; expected a base64 string"),
        ({"image": None}, "the image in the JSON body is NoneType"),
        ({"image": "%%%"}, "is not valid base64"),
        ({"image": "QUJ"}, "is not valid base64"),
        ({"image": "ÄÖÜ="}, "is not valid base64"),
        ({"images": [[1, 2]]}, "is list; expected a base64 string"),
        ({"inputs": [tensor(5)]}, "is int; expected a base64 string"),
    ],
)
def test_an_image_that_is_no_base64_says_so_when_it_is_read(body, message):
    [image] = read({"body": body}).images
    with pytest.raises(RequestError, match=message):
        image.source.read()


def test_a_data_url_without_a_comma_carries_nothing():
    assert list_images(read({"body": {"image": "data:image/png;base64"}})) == [b""]


@pytest.mark.parametrize("entry", [{}, {"a": 1, "b": 2}, {"image": BASE64, "b64": BASE64}, {"b64": BASE64, "top_k": 0}])
def test_an_entry_that_cannot_be_read_stands_as_its_error_among_the_others(entry):
    first, second = read({"body": {"instances": [BASE64, entry]}}).images
    assert first.source.read() == IMAGE
    assert isinstance(second, RequestError)


@pytest.mark.parametrize("datatype", ["FP32", "UINT8", None, 5])
def test_a_tensor_of_numbers_is_refused_as_unsupported(datatype):
    error = refuse({"body": {"inputs": [tensor(1.0, datatype=datatype)]}})
    assert (error.status, error.code) == (415, "unsupported_tensor")


def test_binary_tensors_are_not_offered():
    body = {"inputs": [{"name": "i", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 4}}]}
    assert refuse({"body": body}).status == 501


def test_more_images_than_one_request_may_hold_are_refused():
    assert len(read({"body": {"images": [BASE64] * MAX_IMAGES}}).images) == MAX_IMAGES
    error = refuse({"body": {"images": [BASE64] * (MAX_IMAGES + 1)}})
    assert (error.status, error.code) == (413, "too_many_images")
    assert explain({"body": {"images": [BASE64] * MAX_EXPLAINED}}).error is None
    assert explain({"body": {"images": [BASE64] * (MAX_EXPLAINED + 1)}}).error.status == 413


def test_top_k_comes_from_the_entry_then_json_then_query_then_header_then_the_default():
    body = {"image": BASE64}

    def top_k(item: dict, **headers: str) -> int:
        return read(item, **headers).images[-1].options.top_k

    assert top_k({"body": body}) == 5
    assert top_k({"body": body}, top_k="4") == top_k({"body": body}, TOP_K="4") == 4
    assert top_k({"body": body, "top_k": "3"}, top_k="4") == 3
    assert top_k({"body": body, "top_k": bytearray(b"3")}) == 3
    assert top_k({"body": {"inputs": [tensor(BASE64)], "parameters": {"top_k": 2}}, "top_k": "3"}) == 2
    own = tensor(BASE64, BASE64) | {"parameters": {"top_k": 1, "content_type": "base64"}}
    assert top_k({"body": {"inputs": [own], "parameters": {"top_k": 2}, "top_k": 3}}) == 1
    assert top_k({"body": body | {"top_k": 2}, "top_k": "3"}, top_k="4") == 2
    assert top_k({"body": body | {"top_k": None}}, top_k="4") == 4
    assert top_k({"body": {"images": [BASE64, {"image": BASE64, "top_k": 1}], "top_k": 2}}) == 1


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "", "many", "²", 0, 2.0, True, [3], {}, b"\xff", "9" * 40 + "x"])
def test_a_top_k_that_is_no_whole_number_from_1_is_refused(value):
    assert "expected a whole number from 1" in str(refuse({"body": IMAGE, "top_k": value}))


def test_zeros_before_a_number_are_nothing():
    entry = {"image": BASE64, "top_k": "0" * 5_000 + "3", "target": "0" * 9 + "4"}
    assert explain({"body": entry}).images[0].options == Options(top_k=3, target=4)


def test_a_huge_top_k_asks_for_all_classes():
    assert read({"body": IMAGE, "top_k": "9" * 5_000}).images[0].options.top_k == 999_999_999


@pytest.mark.parametrize(
    ("target", "index"), [("dog", 1), (1, 1), ("1", 1), ("7", 2), (4, 4), (bytearray(b"cat"), 0), (None, None)]
)
def test_a_target_is_a_label_or_an_index(target, index):
    assert explain({"body": {"image": BASE64, "target": target}}).images[0].options.target == index


@pytest.mark.parametrize("target", ["twin", 7, -1, 5, "cow", True, [1], "9" * 5_000])
def test_a_target_that_is_no_class_or_several_is_refused(target):
    assert "target is" in str(refuse({"body": {"image": BASE64, "target": target}}, explain="True"))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "explanation"),
        ("*/*", "explanation"),
        ("application/json", "explanation"),
        ("image/png", "picture"),
        ("Image/PNG;q=0.5, */*;q=0.1", "picture"),
        ("image/*", "picture"),
        ("image/png, application/json", "explanation"),
        ("image/png, application/json;q=0.9", "picture"),
        ("image/png;q=0", "explanation"),
        ("image/png;q=much", "explanation"),
        (";;,,=", "explanation"),
    ],
)
def test_a_picture_is_answered_to_whom_prefers_it(accept, kind):
    headers = {} if accept is None else {"aCCept": accept}
    assert explain({"body": IMAGE}, **headers).kind == kind
    assert read({"body": IMAGE}, **headers).kind == "prediction"


def test_an_explanation_is_what_the_frontend_says_and_no_client():
    assert read({"body": IMAGE}, Explain="True", explain="False").kind == "prediction"


@pytest.mark.parametrize(
    ("body", "accept", "status"),
    [
        ({"images": [BASE64]}, "image/png", 406),
        ({"instances": [BASE64]}, "image/png", 406),
        ({"inputs": [tensor(BASE64)]}, "*/*", 501),
    ],
)
def test_a_form_that_cannot_hold_an_explanation_is_refused(body, accept, status):
    assert explain({"body": body}, accept=accept).error.status == status


def test_a_request_whose_deadline_has_passed_is_not_worked_at():
    request = read({"body": IMAGE}, **{"X-Imgcls-Deadline-Ms": "1000"})
    assert isinstance(request.error, DeadlineExceededError)
    assert (request.error.status, request.images) == (504, ())


@pytest.mark.parametrize("deadline", ["99999999999999", "", "soon", "-1", "1e3", "٣"])
def test_a_deadline_to_come_or_one_that_is_no_number_changes_nothing(deadline):
    assert list_images(read({"body": IMAGE}, **{"x-imgcls-deadline-ms": deadline})) == [IMAGE]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("8d876afe-6fae-4a77", "8d876afe-6fae-4a77"), ("a\nWARNING forged", None), ("x" * 200, None), ("", None)],
)
def test_the_gateways_id_of_a_request_is_kept_if_it_can_stand_in_a_log(sent, kept):
    assert read({"body": IMAGE}, **{"X-Request-Id": sent}).request_id == kept
