"""A small HTTP/2 server over TLS on loopback, which sends its answer piece by piece when told to."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import h2.config
import h2.connection
import h2.events
from anyio.streams.tls import TLSAttribute, TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class H2Server:
    url: str
    pieces: Sequence[bytes]
    #: PEM file of the authority that clients must trust.
    ca_file: Path
    requests: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    protocols: list[str | None] = field(default_factory=list[str | None])
    #: Set one to let the next piece go; the first goes by itself.
    gates: list[anyio.Event] = field(default_factory=list[anyio.Event])

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        self.protocols.append(stream.extra(TLSAttribute.alpn_protocol))
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        async with stream:
            await stream.send(connection.data_to_send())
            while True:
                try:
                    received = connection.receive_data(await stream.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                for event in received:
                    if isinstance(event, h2.events.RequestReceived):
                        self.requests.append({k.decode(): v.decode() for k, v in event.headers})  # type: ignore[union-attr]  (bytes without header_encoding)
                    if isinstance(event, h2.events.StreamEnded):
                        await self._answer(connection, stream, event.stream_id)
                await stream.send(connection.data_to_send())

    async def _answer(
        self, connection: h2.connection.H2Connection, stream: anyio.abc.ByteStream, number: int
    ) -> None:
        head = [(":status", "200"), ("content-type", "text/event-stream")]
        connection.send_headers(number, head)
        for piece, gate in zip(self.pieces, [None, *self.gates], strict=True):
            if gate:
                await gate.wait()
            connection.send_data(number, piece)
            await stream.send(connection.data_to_send())
        connection.end_stream(number)


@asynccontextmanager
async def h2_server(folder: Path, pieces: Sequence[bytes]) -> AsyncGenerator[H2Server]:
    certificate, key = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    server = H2Server(f"https://127.0.0.1:{port}", pieces, certificate)
    server.gates = [anyio.Event() for _ in pieces[1:]]
    listener = TLSListener(tcp, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"
