"""A request that the server behind the gateway never answers: it is asked again beside the first."""

import time

import pytest

from imgcls.gateway.settings import Limits, Settings

REQUEST_TIMEOUT_S = 3.0
# Envoy's timers are libevent's, which on Linux count whole microseconds of this clock. It moves once a tick, some 4 ms,
# so that by another one a request may seem to end a tick before its time.
CLOCK_MONOTONIC_COARSE = 6  # on macOS the number of CLOCK_MONOTONIC


@pytest.fixture
def gateway(running):
    with running(Settings(limits=Limits(request_timeout_s=REQUEST_TIMEOUT_S))) as gateway:
        yield gateway


def now_us() -> int:
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) // 1000


def test_what_is_forgotten_is_asked_again_after_half_of_its_time(gateway):
    gateway.upstream.forgets = 1
    began_us = now_us()
    assert gateway.ask(body=b"the picture").status == 200
    assert now_us() - began_us >= REQUEST_TIMEOUT_S * 1e6 / 2
    assert [seen.body for seen in gateway.seen] == [b"the picture"] * 2


def test_what_is_forgotten_twice_ends_in_time(gateway):
    gateway.upstream.forgets = 2
    began_us = now_us()
    assert gateway.ask().status == 504
    assert REQUEST_TIMEOUT_S * 1e6 <= now_us() - began_us < (REQUEST_TIMEOUT_S + 2) * 1e6
    assert len(gateway.seen) == 2


def test_a_client_that_waits_less_than_half_is_not_asked_for_again(gateway):
    gateway.upstream.forgets = 1
    assert gateway.ask(headers={"X-Timeout-Ms": "1000"}).status == 504
    assert len(gateway.seen) == 1


def test_what_fails_at_once_is_not_asked_for_again(gateway):
    gateway.upstream.status = 500
    assert gateway.ask().status == 500
    assert len(gateway.seen) == 1
