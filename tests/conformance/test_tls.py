"""Encrypted connections with real clients, certificates that change, and connections that do not."""

import datetime
import http.client
import ssl
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import trustme
from served import BINARY, FASHION, ROOT, Served
from tritonclient.grpc import service_pb2, service_pb2_grpc

PIXELS = numpy.zeros((1, 1, 28, 28), numpy.float32)


class Certificates:
    """Certificates of an authority of the tests' own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.path("ca.pem"))
        self.issue("server", "localhost", "127.0.0.1")
        self.issue("client", "client@example.org")

    def path(self, name):
        return str(self.folder / name)

    def issue(self, name, *identities, days=None):
        """Writes a certificate and its key; one of negative days has expired."""
        until = datetime.datetime.now(datetime.UTC)
        until = until + datetime.timedelta(days=days) if days else None
        made = self.authority.issue_cert(*identities, not_after=until)
        Path(self.path(f"{name}.pem")).write_bytes(
            b"".join(p.bytes() for p in made.cert_chain_pems)
        )
        made.private_key_pem.write_to_path(self.path(f"{name}.key"))

    def options(self, name="server"):
        """Returns the server's options for a certificate."""
        return "--tls-cert", self.path(f"{name}.pem"), "--tls-key", self.path(f"{name}.key")

    def context(self):
        """Returns what checks the server's certificate."""
        return ssl.create_default_context(cafile=self.path("ca.pem"))


def infer(module, client):
    """Answers a request and returns the output's shape."""
    tensor = module.InferInput("pixel_values", list(PIXELS.shape), "FP32")
    tensor.set_data_from_numpy(PIXELS)
    return client.infer("fashion", [tensor]).as_numpy("logits").shape


class Encrypted(unittest.TestCase):
    """A server with a certificate."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.certificates = Certificates(cls.folder.name)
        cls.server = Served(
            *cls.certificates.options(), families=FASHION, tls=cls.certificates.context()
        )

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.folder.cleanup()

    def test_triton_over_https(self):
        context = self.certificates.context
        client = httpclient.InferenceServerClient(
            f"localhost:{self.server.http_port}", ssl=True, ssl_context_factory=context
        )
        self.assertEqual(infer(httpclient, client), (1, 10))

    def test_triton_over_encrypted_grpc(self):
        client = grpcclient.InferenceServerClient(
            f"localhost:{self.server.grpc_port}",
            ssl=True,
            root_certificates=self.certificates.path("ca.pem"),
        )
        self.assertEqual(infer(grpcclient, client), (1, 10))

    def test_what_is_not_encrypted_is_refused(self):
        with self.assertRaises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(f"http://{self.server.http_address}/v2", timeout=5)
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with self.assertRaises(grpc.RpcError) as failed:
                stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
        self.assertEqual(failed.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def serial_number(self):
        """Returns the serial number of the certificate that the server shows."""
        pem = ssl.get_server_certificate(("127.0.0.1", self.server.http_port))
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def test_certificates_are_read_again(self):
        before = self.serial_number()
        url = f"localhost:{self.server.http_port}"
        kept = http.client.HTTPSConnection(url, context=self.certificates.context(), timeout=30)
        kept.request("GET", "/v2")
        kept.getresponse().read()
        self.certificates.issue("server", "localhost", "127.0.0.1")
        self.server.reload()
        renewed = self.serial_number()
        self.assertNotEqual(renewed, before)
        # What is wrong changes nothing, and an open connection stays open.
        self.certificates.issue("server", "localhost", days=-1)
        self.server.reload()
        self.assertEqual(self.serial_number(), renewed)
        self.assertIn("server.pem: the certificate is valid from", self.server.messages())
        Path(self.certificates.path("server.pem")).write_text("nothing")
        self.server.reload()
        self.assertEqual(self.serial_number(), renewed)
        kept.request("GET", "/v2")
        self.assertEqual(kept.getresponse().status, 200)
        kept.close()


class ClientCertificates(unittest.TestCase):
    """A server that asks clients for a certificate."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.certificates = Certificates(self.folder.name)
        self.trusted = self.context("client")
        self.server = Served(
            *self.certificates.options(),
            "--tls-client-ca",
            self.certificates.path("ca.pem"),
            families=FASHION,
            tls=self.trusted,
        )

    def tearDown(self):
        self.server.stop()
        self.folder.cleanup()

    def context(self, name):
        context = self.certificates.context()
        context.load_cert_chain(
            self.certificates.path(f"{name}.pem"), self.certificates.path(f"{name}.key")
        )
        return context

    def over_http(self, context):
        url = f"https://{self.server.http_address}/v2"
        return urllib.request.urlopen(url, timeout=10, context=context).status

    def over_grpc(self, name):
        read = lambda path: Path(self.certificates.path(path)).read_bytes()
        credentials = grpc.ssl_channel_credentials(
            read("ca.pem"),
            read(f"{name}.key") if name else None,
            read(f"{name}.pem") if name else None,
        )
        with grpc.secure_channel(f"localhost:{self.server.grpc_port}", credentials) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
            except grpc.RpcError as error:
                return error.code()

    def test_a_certificate_of_the_authority_is_needed(self):
        self.assertEqual(self.over_http(self.trusted), 200)
        self.assertIs(self.over_grpc("client"), True)
        self.certificates.issue("late", "late@example.org", days=-1)
        for name, reason in [(None, "CERTIFICATE_REQUIRED"), ("late", "CERTIFICATE_EXPIRED")]:
            with self.subTest(name):
                context = self.context(name) if name else self.certificates.context()
                with self.assertRaises(OSError) as failed:
                    self.over_http(context)
                self.assertIn(reason, str(failed.exception).upper().replace(" ", "_"))
                self.assertEqual(self.over_grpc(name), grpc.StatusCode.UNAVAILABLE)


class WrongFiles(unittest.TestCase):
    """Certificates with which no server starts."""

    def test_wrong_files_are_refused_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            certificates = Certificates(folder)
            certificates.issue("old", "localhost", days=-1)
            for name, content in [
                ("empty.pem", ""),
                ("broken.pem", "-----BEGIN CERTIFICATE-----"),
                ("late.key", "no key"),
            ]:
                Path(certificates.path(name)).write_text(content)
            certificate, key = certificates.options()[1::2]
            client = certificates.path("client.key")
            path = certificates.path
            for cert, secret, authority, reason in [
                (path("old.pem"), path("old.key"), None, "old.pem: the certificate is valid from"),
                (path("none.pem"), key, None, "none.pem: cannot be read as PEM"),
                (path("empty.pem"), key, None, "empty.pem: holds no certificate"),
                (path("broken.pem"), key, None, "broken.pem: cannot be read as PEM"),
                (certificate, path("late.key"), None, "late.key: cannot be read as PEM"),
                (certificate, client, None, "client.key cannot be used"),
                (certificate, key, path("empty.pem"), "empty.pem: holds no certificate"),
                (certificate, None, None, "--tls-key"),
            ]:
                with self.subTest(reason):
                    options = ["--tls-cert", cert]
                    options += ["--tls-key", secret] if secret else []
                    options += ["--tls-client-ca", authority] if authority else []
                    ended = subprocess.run(
                        [
                            BINARY,
                            "serve",
                            "--check-config",
                            "--pool",
                            ROOT / "tests/pool",
                            *options,
                        ],
                        check=False,
                        capture_output=True,
                        text=True,
                        cwd=ROOT,
                        timeout=120,
                    )
                    self.assertNotEqual(ended.returncode, 0)
                    self.assertIn(reason, ended.stderr)


if __name__ == "__main__":
    unittest.main()
