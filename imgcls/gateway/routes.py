"""Envoy's routes from the table: which version answers, which gets a copy, and what is answered at the gateway itself.

    /predictions/NAME              split by weight     ─► /predictions/NAME/VERSION
    /v1/models/NAME:predict        the same, for KServe's clients
    /v2/models/NAME/infer          the same, for the Open Inference Protocol's
    /explanations/NAME, :explain   split by weight     ─► /explanations/NAME/VERSION
    /predictions/NAME/VERSION      that version, where it has a share of the requests
    gRPC                           TorchServe's default version, which the promotion sets
    /healthz/live                  200 as long as Envoy answers
    /healthz/ready, /ping          the supervisor's word
    all else                       404: TorchServe's management is not reachable

Envoy draws one random number a request and compares it with every route's fraction, so fractions are cumulative.
"""

import re
from collections.abc import Iterator

from imgcls.gateway import access
from imgcls.gateway.clusters import GRPC, SHADOW, SUPERVISOR, cluster_name
from imgcls.gateway.hold import held
from imgcls.gateway.protos import Resource, duration, fraction, typed
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import WHOLE, Model, Table, Version

PUBLIC = "public"
GRPC_SERVICES = (
    "/org.pytorch.serve.grpc.inference.InferenceAPIsService/",
    "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/",
)
# What a worker's death leaves its batch with. Nothing was answered and a prediction changes nothing, so it is safe to
# ask another worker. Our handler's own 507 is of an image that did not fit into memory: one more try does no harm.
WORKER_DIED = 507
RETRIES = 2
# TorchServe answers nobody whose request it had taken for a batch that a worker's death left ungathered. So who has
# waited for so long is asked for once more, beside the first, and gets the answer that comes first.
ASK_AGAIN_AFTER = 0.5  # of the time that a request has


def public_routes(table: Table, settings: Settings, *, guard: Resource) -> Resource:
    """Returns the routes of the public listener, with who may ask as `access.guard` has it."""
    routes = [*_health_routes()]
    for model in table.models:
        routes += () if model.is_closed else _model_routes(model, settings)
    routes += _grpc_routes(table, settings)
    routes.append(_direct("not-found", {"prefix": "/"}, 404, "there is no such path here; see docs/operations.md"))
    return typed(
        "config.route.v3.RouteConfiguration",
        name=PUBLIC,
        virtual_hosts=[
            {
                "name": PUBLIC,
                "domains": ["*"],
                "routes": routes,
                **guard,
                "request_headers_to_remove": ["x-imgcls-answer"],
            }
        ],
        request_headers_to_remove=["x-api-key"],
    )


def shadow_routes(table: Table, settings: Settings) -> Resource:
    """Returns the routes of the internal listener, which turn a copy into a request to the shadowed version."""
    routes = []
    for model in table.models:
        if model.shadow is None:
            continue
        version = model.shadow.version
        for kind in ("predictions", "explanations"):
            path = f"/{kind}/{re.escape(model.name)}/[^/?]+"
            route = _to_version(model, version, settings)
            route["regex_rewrite"] = {
                "pattern": {"regex": f"^{path}"},
                "substitution": f"/{kind}/{model.name}/{version}",
            }
            routes.append(
                {
                    "name": model.name,
                    "match": {"safe_regex": {"regex": path}},
                    "route": route,
                    "typed_per_filter_config": held(model.get(version).hold),
                }
            )
    routes.append(_direct("not-shadowed", {"prefix": "/"}, 404, "no version is shadowed"))
    return typed(
        "config.route.v3.RouteConfiguration",
        name=SHADOW,
        virtual_hosts=[{"name": SHADOW, "domains": ["*"], "routes": routes}],
    )


def shares(model: Model) -> list[tuple[Version, float]]:
    """Returns each version with requests and the upper end of its part of 0 to 100; the last one's is 100."""
    reached, result = 0.0, []
    for row in model.versions:
        if row.weight > 0:
            reached += row.weight
            result.append((row, round(reached, 2)))
    return result


def _model_routes(model: Model, settings: Settings) -> Iterator[Resource]:
    name = model.name
    predictions = (f"/predictions/{name}", f"/v1/models/{name}:predict", f"/v2/models/{name}/infer")
    explanations = (f"/explanations/{name}", f"/v1/models/{name}:explain")
    for kind, paths in (("predictions", predictions), ("explanations", explanations)):
        for path in paths:
            for row, reached in shares(model):
                match: Resource = {"path": path}
                if reached < WHOLE:
                    match["runtime_fraction"] = fraction(reached)
                yield _version_route(model, row, match, f"/{kind}/{name}/{row.version}", settings)
        for row, _ in shares(model):
            path = f"/{kind}/{name}/{row.version}"
            yield _version_route(model, row, {"path": path}, path, settings)


def _version_route(model: Model, row: Version, match: Resource, path: str, settings: Settings) -> Resource:
    route = _to_version(model, row.version, settings)
    route["prefix_rewrite"] = path
    if model.shadow is not None and model.shadow.version != row.version and model.shadow.percent > 0:
        route["request_mirror_policies"] = [
            {
                "cluster": SHADOW,
                "runtime_fraction": fraction(model.shadow.percent),
                "disable_shadow_host_suffix_append": True,
            }
        ]
    return {
        "name": cluster_name(model.name, row.version),
        "match": match,
        "metadata": access.route_metadata(model.name),
        "route": route,
        "typed_per_filter_config": held(row.hold) | ({} if model.is_recorded else access.without_answers()),
    }


def _to_version(model: Model, version: str, settings: Settings) -> Resource:
    return {
        "cluster": cluster_name(model.name, version),
        "timeout": duration(settings.limits.request_timeout_s),
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [WORKER_DIED],
            "num_retries": RETRIES,
            "per_try_timeout": duration(settings.limits.request_timeout_s * ASK_AGAIN_AFTER),
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                }
            ],
            "host_selection_retry_max_attempts": 3,
        },
        "hedge_policy": {"hedge_on_per_try_timeout": True},
    }


def _grpc_routes(table: Table, settings: Settings) -> Iterator[Resource]:
    holds = [row.hold for model in table.models if (row := model.get(model.default)).hold is not None]
    for service in GRPC_SERVICES:
        yield {
            "name": "grpc",
            "match": {"prefix": service, "grpc": {}},
            "route": {
                "cluster": GRPC,
                "timeout": duration(settings.limits.request_timeout_s),
                "max_stream_duration": {"grpc_timeout_header_max": duration(settings.limits.request_timeout_s)},
            },
            "typed_per_filter_config": held(holds[0] if holds else None) | access.without_answers(),
        }


def _health_routes() -> Iterator[Resource]:
    live = _direct("live", {"path": "/healthz/live"}, 200, "live")
    live["typed_per_filter_config"] = access.without_keys()
    yield live
    for path in ("/healthz/ready", "/ping"):
        yield {
            "name": "ready",
            "match": {"path": path},
            "route": {"cluster": SUPERVISOR, "timeout": "2s", "prefix_rewrite": "/ready"},
            "typed_per_filter_config": access.without_keys(),
        }


def _direct(name: str, match: Resource, status: int, message: str) -> Resource:
    """Returns a route that is answered here; the listener puts the message into JSON."""
    return {"name": name, "match": match, "direct_response": {"status": status, "body": {"inline_string": message}}}
