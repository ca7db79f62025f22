"""Envoy's filter that holds new requests of a version for a moment, each for as long.

A server that is alone cannot hand its requests to others while it loses a worker. They wait at the gateway instead:
what was in flight is answered meanwhile, the worker goes, and each request is passed on when its own time is over,
whatever has become of the process that asked for the hold.
"""

from imgcls.gateway.protos import Resource, duration, extension, typed
from imgcls.gateway.table import Hold

HOLD_FILTER = "envoy.filters.http.fault"
_KIND = "extensions.filters.http.fault.v3.HTTPFault"


def hold_filter() -> Resource:
    """Returns the filter, which lets all through but where a route says otherwise."""
    return extension(HOLD_FILTER, typed(_KIND))


def held(hold: Hold | None) -> Resource:
    """Returns what a route says to the filter."""
    if hold is None:
        return {}
    delay = {"fixed_delay": duration(hold.seconds), "percentage": {"numerator": 100}}
    return {HOLD_FILTER: typed(_KIND, delay=delay)}
