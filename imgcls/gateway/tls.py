"""TLS of the public port, with a certificate that may change while Envoy runs."""

from pathlib import Path

from imgcls.gateway.clusters import watched
from imgcls.gateway.protos import Resource, extension, typed
from imgcls.gateway.settings import Tls

SECRET = "public"


def tls_secret(tls: Tls) -> Resource:
    """Returns the certificate and its key. Envoy reads both again when a file is renamed into the certificate's folder.

    It takes a pair only where the two fit, so each may be renamed into place by itself.
    """
    return typed(
        "extensions.transport_sockets.tls.v3.Secret",
        name=SECRET,
        tls_certificate={
            "certificate_chain": {"filename": str(tls.certificate)},
            "private_key": {"filename": str(tls.key)},
            "watched_directory": {"path": str(tls.certificate.parent)},
        },
    )


def tls_socket(secret: Path) -> Resource:
    """Returns the transport of a listener whose certificate stands in the file `secret`, which Envoy watches."""
    return extension(
        "envoy.transport_sockets.tls",
        typed(
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": [{"name": SECRET, "sds_config": watched(secret)}],
            },
        ),
    )
