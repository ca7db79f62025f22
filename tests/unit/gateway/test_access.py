"""API keys at a real Envoy: who is let in, under which name, and that nothing passes where the check itself fails."""

import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from imgcls.errors import UsageError
from imgcls.gateway import envoy
from imgcls.gateway.access import ACCESS_FILTER, NAMED_FILTER, access_filters, watched_files
from imgcls.gateway.keys import create_key, revoke_key
from imgcls.gateway.settings import Access, Jwt, Limits, Settings


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Keys by their names, and the file that knows them."""
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    made = {
        "acme": create_key(file, "acme"),
        "old": create_key(file, "old", expires=datetime.now(UTC) - timedelta(seconds=2)),
        "gone": create_key(file, "gone"),
        "birds-only": create_key(file, "birds-only", models=("birds", "fish")),
    }
    revoke_key(file, "gone")
    return {"file": file} | {name: secret for name, (secret, _) in made.items()}


@pytest.fixture(scope="module")
def gateway(running, secrets):
    with running(Settings(access=Access(keys=secrets["file"]))) as started:
        yield started


@pytest.mark.parametrize(
    "header", [("X-API-Key", "{}"), ("Authorization", "Bearer {}"), ("authorization", "bearer  {} ")]
)
def test_a_key_lets_in_under_its_name(gateway, secrets, header):
    name, form = header
    answer = gateway.ask(headers={name: form.format(secrets["acme"])})
    assert answer.status == 200
    seen = gateway.seen[-1]
    assert seen.headers["x-imgcls-client"] == "acme"
    assert secrets["acme"] not in json.dumps(seen.headers)
    assert seen.headers["authorization"] == "Bearer torchserve-token"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "no API key"),
        ({"Authorization": "Basic YTpi"}, "no API key"),
        ({"X-API-Key": "imk_wrong"}, "not known"),
        ({"X-API-Key": ""}, "not known"),
        ({"X-API-Key": "imk_" + "x" * 8000}, "not known"),
        ({"X-API-Key": "rules"}, "not known"),
        ({"Authorization": "Bearer imk_wrong"}, "not known"),
        ({"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}, "no API key"),
        ({"X-API-Key": "{old}"}, "API key old has expired"),
        ({"X-API-Key": "{gone}"}, "API key gone has been revoked"),
        ({"X-API-Key": "{acme}x"}, "not known"),
        ({"X-API-Key": "{acme},{acme}"}, "not known"),
    ],
)
def test_without_a_good_key_nothing_passes_and_the_answer_says_why(gateway, secrets, headers, reason):
    before = len(gateway.seen)
    answer = gateway.ask(headers={name: value.format(**secrets) for name, value in headers.items()})
    assert answer.status == 401
    assert reason in answer.json["message"]
    assert answer.headers["www-authenticate"].startswith('Bearer realm="imgcls"')
    assert len(gateway.seen) == before


def test_a_stored_hash_is_no_key(gateway, secrets):
    digest = re.search(r"sha256: (\w+)", secrets["file"].read_text())[1]
    assert gateway.ask(key=digest).status == 401


def test_two_headers_with_a_key_are_one_that_nobody_has(gateway, secrets):
    lines = f"X-API-Key: {secrets['acme']}\r\n" * 2
    answer = gateway.send(f"GET /predictions/flowers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_refusal_looks_like_the_gateways_other_errors(gateway, secrets):
    refused = gateway.ask()
    other = gateway.ask("/nowhere", key=secrets["acme"])
    assert other.status == 404
    assert refused.json.keys() == other.json.keys()
    assert refused.json["code"] == 401
    assert refused.json["type"] == other.json["type"]
    assert refused.json["request_id"] == refused.headers["x-request-id"]
    assert refused.headers["content-type"] == other.headers["content-type"]


def test_a_key_for_some_models_may_ask_no_other(gateway, secrets):
    key = secrets["birds-only"]
    assert gateway.ask("/predictions/birds", key=key).status == 200
    assert gateway.ask("/v1/models/birds:predict", key=key).status == 200
    before = len(gateway.seen)
    for path in ("/predictions/flowers", "/predictions/flowers/1.0", "/explanations/flowers", "/nowhere"):
        answer = gateway.ask(path, key=key)
        assert answer.status == 403
        assert answer.json["message"] == "the API key birds-only is for these models only: birds, fish"
    assert len(gateway.seen) == before


def test_health_needs_no_key(gateway):
    assert gateway.ask("/healthz/live", method="GET").status == 200
    assert gateway.ask("/healthz/ready", method="GET").status == 503  # the supervisor is not there
    assert gateway.ask("/healthz/live", method="GET", key="imk_wrong").status == 200


def test_the_log_names_the_client_and_the_reason_and_no_key(running, secrets):
    with running(Settings(access=Access(keys=secrets["file"]))) as gateway:
        gateway.ask(key=secrets["acme"])
        gateway.ask(key=secrets["gone"])
        gateway.ask(headers={"X-Imgcls-Client": "boss"})
        good, refused, anonymous = gateway.logged(3)
        assert good["client"] == "acme"
        assert (refused["client"], refused["refused"]) == (None, "key_revoked")
        assert (anonymous["client"], anonymous["refused"]) == (None, "key_missing")
        text = gateway.paths.access_log.read_text() + gateway.paths.public_routes.read_text()
        assert not [name for name in ("acme", "gone") if secrets[name] in text]


def test_new_and_revoked_keys_come_with_the_routes(running, tmp_path):
    file = tmp_path / "keys.yaml"
    settings = Settings(access=Access(keys=file))
    assert watched_files(settings) == [file]
    with running(settings) as gateway:
        assert gateway.ask(key="imk_any").status == 401  # a file that is not there has no keys
        secret, _ = create_key(file, "acme")
        gateway.apply()
        assert gateway.ask(key=secret).status == 200
        second, _ = create_key(file, "acme-2")
        gateway.apply()
        assert {gateway.ask(key=each).status for each in (secret, second)} == {200}
        revoke_key(file, "acme")
        gateway.apply()
        assert gateway.ask(key=secret).json["message"] == "the API key acme has been revoked"
        assert gateway.ask(key=second).status == 200


def test_a_key_file_that_breaks_neither_opens_the_door_nor_blocks_a_change_of_weights(running, tmp_path, caplog):
    file = tmp_path / "keys.yaml"
    secret, _ = create_key(file, "acme")
    with running(Settings(access=Access(keys=file))) as gateway:
        file.write_text("keys: [")
        gateway.table = gateway.table.model_copy(update={"models": gateway.table.models[:1]})
        gateway.apply()
        assert "keys in force stay" in caplog.text
        assert gateway.ask(key=secret).status == 200
        assert gateway.ask("/predictions/birds", key=secret).status == 404  # the change
        assert gateway.ask(key="imk_wrong").status == 401


def test_a_gateway_does_not_start_with_a_broken_key_file(running, tmp_path):
    (tmp_path / "keys.yaml").write_text("keys: [")
    with (
        pytest.raises(UsageError, match="cannot be read"),
        running(Settings(access=Access(keys=tmp_path / "keys.yaml"))),
    ):
        pass


def test_expiry_is_judged_at_each_request(running, tmp_path):
    file = tmp_path / "keys.yaml"
    expires = datetime.now(UTC) + timedelta(seconds=1.5)
    secret, _ = create_key(file, "short", expires=expires)
    with running(Settings(access=Access(keys=file))) as gateway:
        assert gateway.ask(key=secret).status == 200
        time.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds()) + 0.05)
        assert gateway.ask(key=secret).json["message"] == "the API key short has expired"


def test_without_keys_on_the_loopback_everyone_is_anonymous(running):
    with running(Settings()) as gateway:
        assert gateway.ask(headers={"Authorization": "Bearer something", "X-Imgcls-Client": "boss"}).status == 200
        assert gateway.seen[-1].headers["x-imgcls-client"] == "anonymous"
        assert gateway.seen[-1].headers["authorization"] == "Bearer torchserve-token"


def test_where_anonymous_is_allowed_beside_keys_a_wrong_key_is_still_refused(running, secrets):
    with running(Settings(access=Access(keys=secrets["file"], anonymous=True))) as gateway:
        assert gateway.ask().status == 200
        assert gateway.ask(key=secrets["acme"]).status == 200
        assert gateway.ask(key=secrets["gone"]).status == 401
        assert [seen.headers["x-imgcls-client"] for seen in gateway.seen] == ["anonymous", "acme"]


def test_a_client_may_ask_for_less_time_and_not_for_more(running):
    with running(Settings(limits=Limits(request_timeout_s=20))) as gateway:
        for asked, expected_ms in [("1500", 1500), ("99999", 20000), ("-1", 20000), ("x", 20000), ("nan", 20000)]:
            now_ms = time.time() * 1000
            gateway.ask(headers={"X-Timeout-Ms": asked})
            headers = gateway.seen[-1].headers
            assert headers["x-envoy-expected-rq-timeout-ms"] == str(expected_ms), asked
            assert float(headers["x-imgcls-deadline-ms"]) == pytest.approx(now_ms + expected_ms, abs=1000)


def spoil_routes(gateway, change):
    routes = json.loads(gateway.paths.public_routes.read_text())
    change(routes["resources"][0]["virtual_hosts"][0])
    routes["version_info"] = routes["resources"][0]["name"] + "-spoilt"
    temporary = gateway.paths.folder / "spoilt.json"
    temporary.write_text(json.dumps(routes))
    temporary.replace(gateway.paths.public_routes)
    envoy.wait_for(
        lambda: routes["version_info"] in gateway.admin.route_versions().values(), timeout_s=5, what="spoilt routes"
    )


def without_rules(host):
    del host["typed_per_filter_config"][ACCESS_FILTER]


def with_rules_of_another_type(host):
    host["typed_per_filter_config"][ACCESS_FILTER]["filter_context"]["longest_ms"] = "long"


def with_keys_of_another_type(host):
    metadata = host["metadata"]["filter_metadata"][ACCESS_FILTER]
    metadata.update(dict.fromkeys(metadata, True))
    host["typed_per_filter_config"][ACCESS_FILTER]["filter_context"]["keys"] = "other"


@pytest.mark.parametrize("spoil", [without_rules, with_rules_of_another_type, with_keys_of_another_type])
def test_a_check_that_fails_lets_nobody_in(running, secrets, spoil):
    with running(Settings(access=Access(keys=secrets["file"]))) as gateway:
        spoil_routes(gateway, spoil)
        given = [{"X-API-Key": secrets["acme"]}, {"Authorization": f"Bearer {secrets['acme']}", "X-Timeout-Ms": "5"}]
        if spoil is not with_keys_of_another_type:
            given += [{}, {"X-Imgcls-Client": "acme"}]
        for headers in given:
            answer = gateway.ask(headers=headers)
            assert answer.status == 503
            assert "could not be told" in answer.json["message"]
            assert answer.headers["retry-after"] == "1"
        assert not gateway.seen


def test_a_script_that_breaks_outright_lets_nobody_in(running, secrets):
    def break_script(config):
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        first = manager["http_filters"][0]
        assert first["name"] == ACCESS_FILTER
        first["typed_config"]["default_source_code"]["inline_string"] = "function envoy_on_request(h) error('x') end"

    with running(Settings(access=Access(keys=secrets["file"])), change=break_script) as gateway:
        answer = gateway.ask(key=secrets["acme"], headers={"X-Imgcls-Client": "acme"})
        assert answer.status == 403
        assert answer.json["details"].startswith("rbac_access_denied")
        assert not gateway.seen


def test_nothing_stands_between_the_check_and_its_guard(tmp_path):
    jwks = tmp_path / "jwks.json"
    settings = Settings(access=Access(jwt=Jwt(issuer="x", jwks=jwks)))
    names = [entry["name"] for entry in access_filters(settings, jwt_file=tmp_path / "jwt.json")]
    assert names[0] == ACCESS_FILTER
    assert names.index(NAMED_FILTER) == len(names) - 2
    assert watched_files(settings) == [jwks]
