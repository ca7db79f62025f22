import base64
import json

import pytest
from ts.context import RequestProcessor

from handler.errors import RequestError
from handler.request import ImageRequest, read_request

IMAGE = b"\xff\xd8\xff any bytes"
BASE64 = base64.b64encode(IMAGE).decode()


def read(item: dict, **headers: str) -> ImageRequest:
    return read_request(item, RequestProcessor(headers), default_top_k=5)


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
        {"body": {"data": "data:image/jpeg;base64," + BASE64}},
        {"body": {"image": BASE64[:9] + "\r\n " + BASE64[9:]}},
        {"body": json.dumps({"image": BASE64}).encode()},
        {"body": bytearray(b" \n" + json.dumps({"top_k": 5, "image": BASE64}).encode())},
    ],
)
def test_the_image_is_found_in_every_kind_of_request(item):
    assert read(item) == ImageRequest(image=IMAGE, top_k=5)


def test_an_empty_body_is_an_empty_image():
    assert read({"body": b""}).image == b""


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, r"holds no image; .* \(got the fields: none\)"),
        ({"one": IMAGE, "two": IMAGE}, r"the request holds no image; .* \(got the fields: one, two\)"),
        ({"data": IMAGE, "image": IMAGE}, r"the request holds 2 images \(data, image\); send one a request"),
        ({"body": {}}, r"the JSON object holds no image; .* \(got the fields: none\)"),
        ({"body": {"image": 7}}, "the image in the JSON body is int; expected a base64 string"),
        ({"body": {"image": None}}, "the image in the JSON body is NoneType"),
        ({"body": {"instances": [{"b64": BASE64}]}}, "the image in the JSON body is list"),
        ({"body": {"image": "%%%"}}, "is not valid base64"),
        ({"body": {"image": "QUJ"}}, "is not valid base64"),
        ({"body": {"image": "ÄÖÜ="}}, "is not valid base64"),
        ({"body": {"image": "data:image/png;base64"}}, None),
        ({"body": b'{"image": "QUJD"'}, "starts like JSON but cannot be parsed"),
        ({"body": b'{"image": "\xff"}'}, "starts like JSON but cannot be parsed"),
        ({"body": b'{"a":' * 100_000}, "starts like JSON but cannot be parsed"),
        ({"body": [BASE64]}, "the JSON body is list; expected an object"),
        ({"body": 10**12}, "the JSON body is int; expected an object"),
        ({"body": 1.5}, "the JSON body is float; expected an object"),
        ({"body": None}, "the JSON body is NoneType; expected an object"),
    ],
)
def test_a_request_without_a_readable_image_says_what_is_wrong(item, message):
    if message is None:  # a data: URL without a comma carries nothing; the decoder says so
        assert read(item).image == b""
        return
    with pytest.raises(RequestError, match=message) as caught:
        read(item)
    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["just text", "\ud800"])
def test_text_is_left_to_the_image_decoder_to_refuse(text):
    assert isinstance(read({"body": text}).image, bytes)


def test_top_k_comes_from_json_then_query_then_header_then_the_default():
    body = {"image": BASE64}
    assert read({"body": body}).top_k == 5
    assert read({"body": body}, top_k="4").top_k == 4
    assert read({"body": body, "top_k": "3"}, top_k="4").top_k == 3
    assert read({"body": body, "top_k": bytearray(b"3")}).top_k == 3
    assert read({"body": body | {"top_k": 2}, "top_k": "3"}, top_k="4").top_k == 2
    assert read({"body": body | {"top_k": None}}, top_k="4").top_k == 5


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "", "many", "²", 0, 2.0, True, [3], {}, b"\xff", "9" * 40 + "x"])
def test_a_top_k_that_is_no_whole_number_from_1_is_refused(value):
    with pytest.raises(RequestError, match=r"top_k is .*; expected a whole number from 1"):
        read({"body": IMAGE, "top_k": value})


def test_a_huge_top_k_asks_for_all_classes():
    assert read({"body": IMAGE, "top_k": "9" * 5_000}).top_k == 999_999_999
