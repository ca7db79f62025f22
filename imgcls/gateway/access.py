"""Whom the gateway lets in, and how often: Envoy's filters and what the routes tell them.

    what only the gateway may say is removed            before the first filter, in Envoy's own code
    ─► access    an API key, or none where none is asked for; the deadline
    ─► jwt       a JSON Web Token, where there is one left
    ─► token     its subject becomes the client's name
    ─► named     nobody without a name passes, whatever went wrong before
    ─► limits    429

Filters are read when Envoy starts; keys, rates and models come with the routes, and change with them.
"""

import hashlib
import json
from pathlib import Path

from imgcls.errors import UsageError
from imgcls.gateway import limits
from imgcls.gateway.clusters import watched
from imgcls.gateway.keys import ApiKey, read_keys
from imgcls.gateway.protos import TYPES, Resource, extension, lua_filter, typed
from imgcls.gateway.settings import Jwt, Settings

ACCESS_FILTER = "imgcls.access"
TOKEN_FILTER = "imgcls.token"
NAMED_FILTER = "imgcls.named"
LIMITS_FILTER = "imgcls.limits"
ANSWER_FILTER = "imgcls.answer"
JWT_FILTER = "envoy.filters.http.jwt_authn"
JWT_KIND = "extensions.filters.http.jwt_authn.v3.JwtAuthentication"
JWT_PROVIDER = "jwt"
# A client's word on its own name, on its address, and on what Envoy shall do counts for nothing.
RESERVED_PREFIXES = ("x-imgcls-", "x-envoy-", "x-forwarded-")
RESERVED = ("forwarded", "x-request-id", "x-real-ip", "describe")  # describe: TorchServe's own, to a handler


def early_mutations() -> list[Resource]:
    """Returns what happens to a request's headers before its route is chosen and any filter sees them."""
    mutations: list[Resource] = [{"remove": name} for name in RESERVED]
    mutations += [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in RESERVED_PREFIXES]
    kind = "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return [extension("envoy.http.early_header_mutation.header_mutation", typed(kind, mutations=mutations))]


def access_filters(settings: Settings, *, jwt_file: Path) -> list[Resource]:
    """Returns the filters that stand before all others.

    Args:
        settings: of the gateway.
        jwt_file: where `jwt_filter` lies, and is watched.
    """
    values = {"BOUNDLESS": str(limits.BOUNDLESS)}
    filters = [lua_filter(ACCESS_FILTER, "sha256.lua", "refuse.lua", "access.lua", values=values)]
    if settings.access.jwt is not None:
        filters += [
            {
                "name": JWT_FILTER,
                "config_discovery": {"config_source": watched(jwt_file), "type_urls": [f"{TYPES}.{JWT_KIND}"]},
            },
            lua_filter(TOKEN_FILTER, "refuse.lua", "token.lua"),
        ]
    return [*filters, extension(NAMED_FILTER, _named()), extension(LIMITS_FILTER, limits.limiter())]


def jwt_filter(jwt: Jwt) -> Resource:
    """Returns the filter that verifies a token where there is one; the script after it refuses where there was none.

    Its keys stand in it, as Envoy reads a file of keys only once.

    Raises:
        UsageError: the keys cannot be read, or are no JSON Web Key Set.
    """
    verifier = typed(
        JWT_KIND,
        providers={
            JWT_PROVIDER: {
                "issuer": jwt.issuer,
                "audiences": list(jwt.audiences),
                "local_jwks": {"inline_string": _read_jwks(jwt.jwks)},
                "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
                "payload_in_metadata": "claims",
                "require_expiration": True,
            }
        },
        rules=[
            {
                "match": {"prefix": "/"},
                "requires": {
                    "requires_any": {"requirements": [{"provider_name": JWT_PROVIDER}, {"allow_missing": {}}]}
                },
            }
        ],
    )
    return typed("config.core.v3.TypedExtensionConfig", name=JWT_FILTER, typed_config=verifier)


def guard(settings: Settings) -> Resource:
    """Returns who may ask, and how often, as fields of the virtual host.

    Raises:
        UsageError: the key file is broken.
    """
    access = settings.access
    keys = read_keys(access.keys) if access.keys is not None else ()
    known = {key.sha256: _key_fields(key) for key in keys}
    rules = {
        "is_open": access.is_open,
        "has_jwt": access.jwt is not None,
        "longest_ms": round(settings.limits.request_timeout_s * 1000),
        "keys": hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(),  # tells whether they changed
    }
    return {
        "metadata": {"filter_metadata": {ACCESS_FILTER: known}},
        "typed_per_filter_config": {
            ACCESS_FILTER: typed("extensions.filters.http.lua.v3.LuaPerRoute", filter_context=rules),
            LIMITS_FILTER: limits.route_limits(settings.limits, access, keys),
        },
    }


def route_metadata(model: str) -> Resource:
    """Returns what tells the access script which model a route asks."""
    return {"filter_metadata": {ACCESS_FILTER: {"model": model}}}


def watched_files(settings: Settings) -> list[Path]:
    """Returns the files whose change means that Envoy's files have to be written again."""
    access = settings.access
    return [path for path in (access.keys, access.jwt.jwks if access.jwt is not None else None) if path is not None]


def without_keys() -> Resource:
    """Returns what lets everyone in at one route, as often as they like."""
    return dict.fromkeys((ACCESS_FILTER, JWT_FILTER, TOKEN_FILTER, NAMED_FILTER, LIMITS_FILTER), _disabled())


def without_answers() -> Resource:
    """Returns what keeps answers out of the access log at one route."""
    return {ANSWER_FILTER: _disabled()}


def _key_fields(key: ApiKey) -> Resource:
    fields: Resource = {"name": key.name, "is_revoked": key.revoked is not None}
    if key.expires is not None:
        fields["expires_ms"] = round(key.expires.timestamp() * 1000)
    if key.models is not None:
        fields["models"] = list(key.models)
    return fields


def _read_jwks(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        keys = json.loads(text).get("keys")
    except (OSError, ValueError, AttributeError) as err:
        raise UsageError(f"{path}: cannot be read as JSON ({err}); expected a JSON Web Key Set") from err
    if not isinstance(keys, list) or not keys:
        raise UsageError(f"{path}: keys is {keys!r}; expected a JSON Web Key Set with at least one public key")
    for index, key in enumerate(keys):
        if not isinstance(key, dict) or not {"kty"} <= set(key):
            raise UsageError(f"{path}: keys[{index}] has no kty; expected a JSON Web Key")
        if key["kty"] == "oct" or "d" in key:
            raise UsageError(f"{path}: keys[{index}] is a secret or private key; expected public keys only")
    return text


def _named() -> Resource:
    """Returns the last word: Envoy lets a request through where a script fails, this does not."""
    named = {"header": {"name": limits.CLIENT_HEADER, "present_match": True}}
    return typed(
        "extensions.filters.http.rbac.v3.RBAC",
        rules={"action": "ALLOW", "policies": {"named": {"permissions": [{"any": True}], "principals": [named]}}},
    )


def _disabled() -> Resource:
    return typed("config.route.v3.FilterConfig", disabled=True)
