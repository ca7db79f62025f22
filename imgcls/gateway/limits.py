"""How often clients may ask: a token bucket for all, and one for each of them, in Envoy's local rate limiter.

A bucket holds `burst` tokens and gets `requests_per_s` back every second, evenly. Each is shared by all of an Envoy's
threads, so limits hold for the gateway as a whole; a second gateway has its own. The buckets stand in the routes: a
change comes with the next ones. Envoy then fills them anew, so a client may get one more burst.
"""

import math
from collections.abc import Iterable, Sequence

from imgcls.gateway.keys import ApiKey
from imgcls.gateway.protos import Resource, duration, typed
from imgcls.gateway.settings import Access, Limits

KIND = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
STAT_PREFIX = "limits"
CLIENT_HEADER = "x-imgcls-client"
MOST_SUBJECTS = 10_000  # buckets of tokens' subjects; the one that asked longest ago makes room, and starts full again
BOUNDLESS = 4_000_000_000  # Envoy wants a bucket for all: one that nobody can empty
SHORTEST_FILL_S = 0.05  # Envoy's


def limiter() -> Resource:
    """Returns the filter, which does nothing where the routes say nothing."""
    return typed(KIND, stat_prefix=STAT_PREFIX)


def route_limits(limits: Limits, access: Access, keys: Iterable[ApiKey]) -> Resource:
    """Returns the buckets, for the virtual host."""
    return typed(
        KIND,
        stat_prefix=STAT_PREFIX,
        token_bucket=_bucket(limits.requests_per_s, None) if limits.requests_per_s else _boundless(),
        descriptors=list(_descriptors(limits, access, keys)),
        rate_limits=[
            {"actions": [{"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": "client"}}]},
            {
                "actions": [
                    {
                        "header_value_match": {
                            "descriptor_key": "kind",
                            "descriptor_value": "token",
                            "headers": [{"name": CLIENT_HEADER, "string_match": {"prefix": "jwt:"}}],
                        }
                    },
                    {"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": "subject"}},
                ]
            },
        ],
        max_dynamic_descriptors=MOST_SUBJECTS,
        rate_limited_as_resource_exhausted=True,  # over gRPC
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        filter_enabled=_always("enabled"),
        filter_enforced=_always("enforced"),
    )


def _descriptors(limits: Limits, access: Access, keys: Iterable[ApiKey]) -> Iterable[Resource]:
    for key in keys:
        rate = key.requests_per_s or limits.client_requests_per_s
        if rate is not None:
            yield _descriptor([("client", key.name)], _bucket(rate, key.burst))
    if access.is_open and limits.client_requests_per_s is not None:
        yield _descriptor([("client", "anonymous")], _bucket(limits.client_requests_per_s, None))
    if access.jwt is not None:
        rate = access.jwt.requests_per_s or limits.client_requests_per_s
        if rate is not None:
            yield _descriptor([("kind", "token"), ("subject", "")], _bucket(rate, None))  # "": one for each


def _descriptor(entries: Sequence[tuple[str, str]], bucket: Resource) -> Resource:
    return {"entries": [{"key": key, "value": value} for key, value in entries], "token_bucket": bucket}


def _bucket(requests_per_s: float, burst: int | None) -> Resource:
    """Returns a bucket; Envoy fills it by whole tokens, so the interval carries what is left of the rate."""
    tokens = max(1, math.ceil(requests_per_s * SHORTEST_FILL_S))
    return {
        "max_tokens": burst or max(1, math.ceil(requests_per_s)),
        "tokens_per_fill": tokens,
        "fill_interval": duration(tokens / requests_per_s),
    }


def _boundless() -> Resource:
    return {"max_tokens": BOUNDLESS, "tokens_per_fill": BOUNDLESS, "fill_interval": "1s"}


def _always(name: str) -> Resource:
    return {"runtime_key": f"imgcls.limits_{name}", "default_value": {"numerator": 100, "denominator": "HUNDRED"}}
