"""TLS at a real Envoy: which versions and protocols, and certificates that change while it runs."""

import datetime
import http.client
import ssl
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imgcls.files import write_atomic
from imgcls.gateway import envoy
from imgcls.gateway.keys import create_key
from imgcls.gateway.settings import Access, Limits, Listen, Settings, Tls


def make_certificate():
    """Returns a self-signed certificate for localhost and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def folder(tmp_path):
    certificate, key = make_certificate()
    (tmp_path / "tls.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    return tmp_path


def settings_for(folder, **options):
    tls = Tls(certificate=folder / "tls.crt", key=folder / "tls.key")
    return Settings(listen=Listen(tls=tls), **options)


def open_tls(gateway, *, trust=None, protocols=("http/1.1",), version=None):
    """Returns a connection, made with nothing trusted but `trust`, and with no version but `version`."""
    context = ssl.create_default_context(cadata=trust) if trust else ssl._create_unverified_context()
    context.set_alpn_protocols(list(protocols))
    if version is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of old versions, which is what this is about
            context.minimum_version = context.maximum_version = version
    connection = gateway.connect()
    try:
        return context.wrap_socket(connection, server_hostname="localhost")
    except BaseException:
        connection.close()
        raise


def served(gateway):
    """Returns the certificate that a new connection gets, PEM."""
    with open_tls(gateway) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True)).encode()


def test_requests_and_keys_pass_over_tls(running, folder):
    key, _ = create_key(folder / "keys.yaml", "acme")
    trusted = (folder / "tls.crt").read_text()
    with running(settings_for(folder, access=Access(keys=folder / "keys.yaml"))) as gateway:
        for given, expected in ((key, 200), ("imk_wrong", 401)):
            connection = http.client.HTTPConnection("localhost", gateway.port)
            connection.sock = open_tls(gateway, trust=trusted)
            connection.request("POST", "/predictions/flowers", body=b"picture", headers={"X-API-Key": given})
            response = connection.getresponse()
            assert response.status == expected
            response.read()
            connection.close()
        assert [seen.headers["x-forwarded-proto"] for seen in gateway.seen] == ["https"]


def test_plain_http_and_old_versions_are_refused(running, folder):
    with running(settings_for(folder)) as gateway:
        assert not gateway.send("GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with open_tls(gateway, version=version) as connection:
                assert connection.version().replace(".", "_") == version.name
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(ssl.SSLError) as caught:
                open_tls(gateway, version=version)
            assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"  # the gateway's word, not the client's own


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["x"], None)])
def test_the_protocol_is_agreed_on_in_the_handshake(running, folder, offered, chosen):
    with running(settings_for(folder)) as gateway, open_tls(gateway, protocols=offered) as connection:
        assert connection.selected_alpn_protocol() == chosen


def test_a_handshake_that_does_not_come_is_cut_off(running, folder):
    settings = settings_for(folder, limits=Limits(header_timeout_s=0.3))
    with running(settings) as gateway, gateway.connect() as connection:
        connection.settimeout(5)
        assert connection.recv(100) == b""


def test_a_new_certificate_is_served_while_it_runs(running, folder):
    first = (folder / "tls.crt").read_bytes()
    with running(settings_for(folder)) as gateway:
        assert served(gateway) == first
        with open_tls(gateway) as old:
            second, key = make_certificate()
            write_atomic(folder / "tls.crt", second)  # for a moment, certificate and key do not fit
            assert served(gateway) == first
            write_atomic(folder / "tls.key", key)
            envoy.wait_for(lambda: served(gateway) == second, timeout_s=5, what="the new certificate is served")
            old.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert old.recv(1000).startswith(b"HTTP/1.1 200")  # connections that there are go on


def test_a_broken_certificate_leaves_the_old_one_served(running, folder):
    first = (folder / "tls.crt").read_bytes()
    with running(settings_for(folder)) as gateway:
        write_atomic(folder / "tls.crt", b"no certificate")
        envoy.wait_for(
            lambda: sum(gateway.admin.stats(r"update_rejected$|key_rotation_failed$").values()) > 0,
            timeout_s=5,
            what="the broken certificate is noticed",
        )
        assert served(gateway) == first
