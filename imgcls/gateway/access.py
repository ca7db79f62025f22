"""Whom the gateway lets in, and how often: Envoy's filters and what the routes tell them."""

from pathlib import Path

from imgcls.gateway.protos import Resource, extension, typed
from imgcls.gateway.settings import Settings

LUA = Path(__file__).parent / "lua"
ACCESS_FILTER = "imgcls.access"
ANSWER_FILTER = "imgcls.answer"


def access_filters(settings: Settings) -> list[Resource]:
    """Returns the filters that stand before all others."""
    script = (LUA / "access.lua").read_text(encoding="utf-8")
    longest_ms = round(settings.limits.request_timeout_s * 1000)
    return [lua_filter(ACCESS_FILTER, script.replace("LONGEST_MS = 60000", f"LONGEST_MS = {longest_ms}"))]


def lua_filter(name: str, script: str) -> Resource:
    """Returns a filter that runs a script."""
    return extension(name, typed("extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": script}))


def key_metadata(settings: Settings) -> Resource:
    """Returns what the access script looks keys up in."""
    return {}


def rate_limits(settings: Settings) -> Resource:
    """Returns the limits of each client, for the virtual host."""
    return {}


def without_keys() -> Resource:
    """Returns what lets everyone in at one route."""
    return {ACCESS_FILTER: _disabled()}


def without_answers() -> Resource:
    """Returns what keeps answers out of the access log at one route."""
    return {ANSWER_FILTER: _disabled()}


def _disabled() -> Resource:
    return typed("extensions.filters.http.lua.v3.LuaPerRoute", disabled=True)
