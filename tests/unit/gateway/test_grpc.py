"""gRPC through a real Envoy, to a real gRPC server that tells what got through."""

from concurrent import futures
from contextlib import ExitStack

import grpc
import pytest

from imgcls.gateway.keys import create_key
from imgcls.gateway.settings import Access, Limits, Settings


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.yaml"


@pytest.fixture(scope="module")
def key(file):
    return create_key(file, "acme")[0]


@pytest.fixture(scope="module")
def grpc_channel(running, file, key):
    asked = []

    class Everything(grpc.GenericRpcHandler):
        def service(self, details):
            asked.append((details.method, dict(details.invocation_metadata)))
            return grpc.unary_unary_rpc_method_handler(lambda request, _: b"echo " + request)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with ExitStack() as stack:
            gateway = stack.enter_context(running(Settings(access=Access(keys=file)), grpc_port=port))
            yield stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{gateway.port}")), asked
    finally:
        server.stop(None).wait()


INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"


def test_grpc_passes_with_a_key(grpc_channel, key):
    channel, asked = grpc_channel
    call = channel.unary_unary(INFERENCE)
    assert call(b"hello", metadata=[("authorization", f"Bearer {key}")], timeout=5) == b"echo hello"
    method, metadata = asked[-1]
    assert method == INFERENCE
    assert metadata["x-imgcls-client"] == "acme"
    assert metadata["authorization"] == "Bearer torchserve-token"


@pytest.mark.parametrize("method", ["ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel"])
def test_grpc_management_is_not_there(grpc_channel, key, method):
    channel, asked = grpc_channel
    before = len(asked)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(MANAGEMENT + method)(b"", metadata=[("x-api-key", key)], timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert len(asked) == before


def test_grpc_without_a_key_is_refused_in_its_own_form(grpc_channel):
    channel, asked = grpc_channel
    before = len(asked)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFERENCE)(b"", timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert "no API key" in caught.value.details()
    assert len(asked) == before


def test_a_key_for_some_models_may_not_use_grpc_where_the_gateway_does_not_see_the_model(running, tmp_path):
    limited, _ = create_key(tmp_path / "keys.yaml", "some", models=("flowers",))
    with running(Settings(access=Access(keys=tmp_path / "keys.yaml"))) as gateway:
        with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFERENCE)(b"", metadata=[("x-api-key", limited)], timeout=5)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_grpc_beyond_a_limit_is_told_so(running, tmp_path):
    with running(Settings(limits=Limits(client_requests_per_s=0.01))) as gateway:
        assert gateway.ask().status == 200
        with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFERENCE)(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
