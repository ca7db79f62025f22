"""The hash that Lua computes is hashlib's, for every length around the borders of its blocks."""

import hashlib
import random
from pathlib import Path

import imgcls.gateway
from imgcls.gateway.settings import Settings

LUA = Path(imgcls.gateway.__file__).parent / "lua"
LENGTHS = [*range(0, 10), *range(50, 70), *range(115, 135), 183, 184, 255, 256, 1000]
# The input comes in hexadecimal, as a header cannot hold all bytes.
ANSWER = """
function envoy_on_request(handle)
  local input = handle:headers():get("x-input"):gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end)
  handle:respond({ [":status"] = "200" }, sha256(input:sub(2)))
end
"""


def test_sha256_in_lua_is_that_of_hashlib(running):
    def answer_with_hash(config):
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        script = (LUA / "sha256.lua").read_text() + ANSWER
        manager["http_filters"][0]["typed_config"]["default_source_code"]["inline_string"] = script

    source = random.Random(5)
    with running(Settings(), change=answer_with_hash) as gateway:
        for length in LENGTHS:
            data = source.randbytes(length)
            answer = gateway.ask(headers={"X-Input": "00" + data.hex()})  # a header that is never empty
            assert answer.json["message"] == hashlib.sha256(data).hexdigest(), f"{length} bytes"
