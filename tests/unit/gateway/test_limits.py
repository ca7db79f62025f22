"""Rate limits at a real Envoy with two threads: per client, for all, and changed while it runs."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgcls.errors import UsageError
from imgcls.gateway.keys import create_key, read_keys
from imgcls.gateway.limits import route_limits
from imgcls.gateway.settings import FASTEST_RATE, SLOWEST_RATE, Access, Limits, Settings


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


def statuses(gateway, count, *, key=None):
    return [gateway.ask(key=key).status for _ in range(count)]


def test_each_key_has_a_limit_of_its_own(running, file):
    slow, _ = create_key(file, "slow", requests_per_s=0.05, burst=3)
    other, _ = create_key(file, "other", requests_per_s=0.05, burst=5)
    free, _ = create_key(file, "free")
    with running(Settings(access=Access(keys=file))) as gateway:
        assert statuses(gateway, 5, key=slow) == [200] * 3 + [429] * 2
        assert statuses(gateway, 6, key=other) == [200] * 5 + [429]
        assert statuses(gateway, 20, key=free) == [200] * 20
        assert len(gateway.seen) == 28


def test_a_refusal_says_when_to_come_back_and_what_the_limit_is(running, file):
    key, _ = create_key(file, "acme", requests_per_s=0.1)
    with running(Settings(access=Access(keys=file))) as gateway:
        assert gateway.ask(key=key).headers["x-ratelimit-remaining"] == "0"
        refused = gateway.ask(key=key)
        assert refused.status == refused.json["code"] == 429
        assert 8 <= int(refused.headers["retry-after"]) <= 10
        assert refused.headers["x-ratelimit-limit"] == "1"


def test_without_a_limit_nothing_is_said_of_one(running):
    with running(Settings()) as gateway:
        answer = gateway.ask()
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_the_bucket_is_filled_again_at_its_rate(running, file):
    key, _ = create_key(file, "acme", requests_per_s=20, burst=2)
    with running(Settings(access=Access(keys=file))) as gateway:
        start_s = time.monotonic()
        passed = 0
        while time.monotonic() - start_s < 1.5:
            passed += gateway.ask(key=key).status == 200
        took_s = time.monotonic() - start_s
        assert passed == pytest.approx(2 + 20 * took_s, abs=4)


def test_a_limit_holds_over_all_threads_of_envoy(running, file):
    key, _ = create_key(file, "acme", requests_per_s=0.05, burst=40)
    with running(Settings(access=Access(keys=file))) as gateway:
        with ThreadPoolExecutor(16) as pool:  # each request on a connection of its own: both threads get some
            got = list(pool.map(lambda _: gateway.ask(key=key).status, range(160)))
        workers = gateway.admin.stats(r"worker_\d+\.downstream_cx_total$")
        busy = [name for name, count in workers.items() if name.startswith("listener.") and count]
        assert len([name for name in busy if "admin" not in name]) == 2
        assert (got.count(200), got.count(429)) == (40, 120)


def test_a_limit_of_all_counts_for_every_client(running, file):
    keys = [create_key(file, name)[0] for name in ("a", "b")]
    settings = Settings(access=Access(keys=file), limits=Limits(requests_per_s=4))
    with running(settings) as gateway:
        got = [gateway.ask(key=key).status for _ in range(4) for key in keys]
        assert 4 <= got.count(200) <= 5
        assert gateway.ask(key="imk_wrong").status == 401  # what is not let in takes nothing from the others


def test_a_default_limit_counts_for_each_key_without_one(running, file):
    plain, _ = create_key(file, "plain")
    plain_2, _ = create_key(file, "plain-2")
    own, _ = create_key(file, "own", requests_per_s=0.05, burst=5)
    settings = Settings(access=Access(keys=file, anonymous=True), limits=Limits(client_requests_per_s=0.1))
    with running(settings) as gateway:
        for key in (plain, plain_2, None):
            assert statuses(gateway, 2, key=key) == [200, 429]
        assert statuses(gateway, 6, key=own) == [200] * 5 + [429]


def test_a_new_rate_comes_with_the_routes(running, file):
    key, _ = create_key(file, "acme", requests_per_s=0.05, burst=1)
    with running(Settings(access=Access(keys=file))) as gateway:
        assert statuses(gateway, 2, key=key) == [200, 429]
        text = file.read_text()
        file.write_text(text.replace("burst: 1", "burst: 4"))
        gateway.apply()
        assert statuses(gateway, 5, key=key) == [200] * 4 + [429]


def test_routes_that_say_the_same_leave_the_buckets_as_they_are(running, file):
    key, _ = create_key(file, "acme", requests_per_s=0.05, burst=1)
    with running(Settings(access=Access(keys=file))) as gateway:
        assert statuses(gateway, 2, key=key) == [200, 429]
        gateway.apply()
        assert statuses(gateway, 1, key=key) == [429]


def test_other_routes_fill_the_buckets_again(running, file):
    """Not wished for, but so: docs/access.md says it."""
    key, _ = create_key(file, "acme", requests_per_s=0.05, burst=1)
    with running(Settings(access=Access(keys=file))) as gateway:
        assert statuses(gateway, 2, key=key) == [200, 429]
        gateway.table = gateway.table.model_copy(update={"models": gateway.table.models[:1]})
        gateway.apply()
        assert statuses(gateway, 2, key=key) == [200, 429]


def test_health_is_not_limited(running):
    with running(Settings(limits=Limits(requests_per_s=0.05, client_requests_per_s=0.05))) as gateway:
        assert statuses(gateway, 2) == [200, 429]
        assert [gateway.ask("/healthz/live", method="GET").status for _ in range(5)] == [200] * 5


def test_envoy_takes_the_slowest_and_the_fastest_rate_that_may_be_set(running, file):
    with pytest.raises(UsageError, match=r"requests_per_s is 1e-12; .* greater than or equal to"):
        create_key(file, "never", requests_per_s=1e-12)  # a bucket that Envoy refuses, and all routes with it
    key, _ = create_key(file, "slow", requests_per_s=SLOWEST_RATE)
    access = Access(keys=file, anonymous=True)
    limits = Limits(requests_per_s=FASTEST_RATE, client_requests_per_s=SLOWEST_RATE)
    with running(Settings(access=access)) as gateway:
        gateway.apply(Settings(access=access, limits=limits))
        assert statuses(gateway, 2, key=key) == [200, 429]
        assert statuses(gateway, 2) == [200, 429]


@pytest.mark.parametrize("rate", [0.001, 0.7, 1, 19, 20, 21, 333.3, 1_000_000])
def test_a_buckets_interval_carries_the_rate_and_is_long_enough_for_envoy(file, rate):
    create_key(file, "acme", requests_per_s=rate)
    (row,) = route_limits(Limits(), Access(keys=file), read_keys(file))["descriptors"]
    bucket = row["token_bucket"]
    interval_s = float(bucket["fill_interval"].removesuffix("s"))
    assert interval_s >= 0.05
    assert bucket["tokens_per_fill"] / interval_s == pytest.approx(rate, rel=0.01)
    assert bucket["max_tokens"] >= max(1, rate)
