"""JSON Web Tokens at a real Envoy: what is taken, under which name, and what is refused and why."""

import base64
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imgcls.errors import UsageError
from imgcls.files import write_atomic
from imgcls.gateway import envoy
from imgcls.gateway.access import jwt_filter, watched_files
from imgcls.gateway.keys import create_key
from imgcls.gateway.settings import Access, Jwt, Settings

ISSUER = "https://issuer.example"


def make_key():
    return ec.generate_private_key(ec.SECP256R1())


def write_jwks(path, **keys):
    """Writes the public halves of keys, each under its id."""
    rows = [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid} for kid, key in keys.items()]
    write_atomic(path, json.dumps({"keys": rows}))


def make_token(key, *, kid="first", algorithm="ES256", drop=(), **claims):
    payload = {"iss": ISSUER, "aud": "imgcls", "sub": "alice", "exp": time.time() + 600} | claims
    payload = {name: value for name, value in payload.items() if name not in drop}
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": kid})


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def key():
    return make_key()


@pytest.fixture(scope="module")
def setup(running, tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("jwt")
    write_jwks(folder / "jwks.json", first=key)
    secret, _ = create_key(folder / "keys.yaml", "acme")
    access = Access(
        keys=folder / "keys.yaml", jwt=Jwt(issuer=ISSUER, jwks=folder / "jwks.json", audiences=("imgcls", "other"))
    )
    with running(Settings(access=access)) as gateway:
        yield gateway, secret


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_subject_becomes_the_clients_name(setup, key, scheme):
    gateway, _ = setup
    token = make_token(key, sub="alice@example.org")
    answer = gateway.ask(headers={"Authorization": f"{scheme} {token}", "X-Imgcls-Client": "boss"})
    assert answer.status == 200
    headers = gateway.seen[-1].headers
    assert headers["x-imgcls-client"] == "jwt:alice@example.org"
    assert token not in json.dumps(headers)


def encode(part):
    return (
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).rstrip(b"=").decode()
    )


def make_by_hand(header, sign):
    """Makes what no library wants to make."""
    claims = {"iss": ISSUER, "aud": "imgcls", "sub": "alice", "exp": time.time() + 600}
    signed = f"{encode(header)}.{encode(claims)}"
    return f"{signed}.{encode(sign(signed.encode()))}"


def unsigned():
    return make_by_hand({"alg": "none"}, lambda _: b"")


def signed_with_the_public_key(key):
    """The old trick: a symmetric signature whose secret is what everyone may know."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return make_by_hand({"alg": "HS256", "kid": "first"}, lambda text: hmac.digest(public, text, "sha256"))


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        (lambda key: make_token(key, iss="https://other.example"), 401, "issuer is not configured"),
        (lambda key: make_token(key, drop=["iss"]), 401, "issuer"),
        (lambda key: make_token(key, aud="elsewhere"), 403, "Audiences"),
        (lambda key: make_token(key, drop=["aud"]), 403, "Audiences"),
        (lambda key: make_token(key, exp=time.time() - 120), 401, "expired"),
        (lambda key: make_token(key, drop=["exp"]), 401, "verification fails"),
        (lambda key: make_token(key, nbf=time.time() + 600), 401, "not yet valid"),
        (lambda key: make_token(make_key()), 401, "verification fails"),
        (lambda key: make_token(key, kid="second"), 401, "kid"),
        (lambda key: make_token(key)[:-4] + "AAAA", 401, "verification fails"),
        (lambda key: unsigned(), 401, "Jwt"),
        (signed_with_the_public_key, 401, "verification fails"),
        (lambda key: make_token(key, drop=["sub"]), 401, "subject"),
        (lambda key: make_token(key, sub=""), 401, "subject"),
        (lambda key: make_token(key, sub="a\r\nx-imgcls-client: boss"), 401, "subject"),
        (lambda key: make_token(key, sub="x" * 129), 401, "subject"),
        (lambda key: "no-token-at-all", 401, "not in the form"),
    ],
)
def test_a_token_that_is_not_good_is_refused_with_its_reason(setup, key, token, status, reason):
    gateway, _ = setup
    before = len(gateway.seen)
    answer = gateway.ask(headers=bearer(token(key)))
    assert (answer.status, answer.json["code"]) == (status, status)
    assert reason in answer.json["message"]
    assert "invalid_token" in answer.headers.get("www-authenticate", "")
    assert len(gateway.seen) == before


def test_an_api_key_as_bearer_is_not_taken_for_a_token(setup, key):
    gateway, secret = setup
    assert gateway.ask(headers=bearer(secret)).status == 200
    assert gateway.seen[-1].headers["x-imgcls-client"] == "acme"
    assert gateway.ask(headers=bearer("imk_wrong")).json["message"] == "this API key is not known here"


def test_an_api_key_counts_before_a_token(setup, key):
    gateway, secret = setup
    assert gateway.ask(key=secret, headers=bearer(make_token(make_key()))).status == 200
    assert gateway.seen[-1].headers["x-imgcls-client"] == "acme"
    assert gateway.ask(key="imk_wrong", headers=bearer(make_token(key))).status == 401


def test_a_token_is_looked_for_in_its_header_only(setup, key):
    gateway, _ = setup
    before = len(gateway.seen)
    assert gateway.ask(f"/predictions/flowers?access_token={make_token(key)}").status == 401
    assert gateway.ask(headers={"Authorization": f"Basic {make_token(key)}"}).status == 401
    assert gateway.ask(headers={"Authorization": f"x Bearer {make_token(key)}"}).status == 401
    assert len(gateway.seen) == before


def test_health_is_answered_whatever_the_token(setup):
    gateway, _ = setup
    assert gateway.ask("/healthz/live", method="GET", headers=bearer("junk")).status == 200


def test_new_signing_keys_are_taken_while_it_runs_and_old_ones_go(running, tmp_path, key):
    settings = Settings(access=Access(jwt=Jwt(issuer=ISSUER, jwks=tmp_path / "jwks.json")))
    assert watched_files(settings) == [tmp_path / "jwks.json"]
    write_jwks(tmp_path / "jwks.json", first=key)
    with running(settings) as gateway:
        second = make_key()
        assert gateway.ask(headers=bearer(make_token(key))).status == 200
        assert gateway.ask(headers=bearer(make_token(second, kid="second"))).status == 401
        write_jwks(tmp_path / "jwks.json", first=key, second=second)
        gateway.apply()
        by_both = (make_token(key), make_token(second, kid="second"))
        envoy.wait_for(
            lambda: [gateway.ask(headers=bearer(token)).status for token in by_both] == [200, 200],
            timeout_s=5,
            what="both signing keys count",
        )
        write_jwks(tmp_path / "jwks.json", second=second)
        gateway.apply()
        envoy.wait_for(
            lambda: [gateway.ask(headers=bearer(token)).status for token in by_both] == [401, 200],
            timeout_s=5,
            what="the old signing key is gone",
        )


def test_where_the_verifier_says_nothing_nobody_passes(running, tmp_path, key, monkeypatch):
    """As if Envoy and the script before it did not agree on what a token is."""
    write_jwks(tmp_path / "jwks.json", first=key)
    settings = Settings(access=Access(jwt=Jwt(issuer=ISSUER, jwks=tmp_path / "jwks.json")))
    lenient = json.loads(json.dumps(jwt_filter(settings.access.jwt)))
    lenient["typed_config"]["rules"] = []
    monkeypatch.setattr("imgcls.gateway.access.jwt_filter", lambda _: lenient)
    with running(settings) as gateway:
        answer = gateway.ask(headers=bearer(make_token(make_key())))
        assert (answer.status, answer.json["message"]) == (401, "no token has been verified")
        assert not gateway.seen


def test_a_broken_key_set_leaves_the_old_one_in_force(running, tmp_path, key, caplog):
    write_jwks(tmp_path / "jwks.json", first=key)
    settings = Settings(access=Access(jwt=Jwt(issuer=ISSUER, jwks=tmp_path / "jwks.json")))
    with running(settings) as gateway:
        write_atomic(tmp_path / "jwks.json", "{")
        gateway.apply()
        assert "signing keys in force stay" in caplog.text
        assert gateway.ask(headers=bearer(make_token(key))).status == 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "cannot be read as JSON"),
        ("{}", "keys is None"),
        ('{"keys": [1]}', r"keys\[0\] has no kty"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "public keys only"),
        ('{"keys": [{"kty": "EC", "d": "x"}]}', "public keys only"),
    ],
)
def test_a_broken_key_set_is_refused_in_one_line(tmp_path, text, expected):
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        jwt_filter(Jwt(issuer=ISSUER, jwks=path))
