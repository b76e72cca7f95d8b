"""Certificates for tests, good ones and bad ones, made when they are needed."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM
_HOUR = datetime.timedelta(hours=1)


@dataclass
class Authority:
    """Somebody who signs certificates; trusted by whoever is given `ca_file`."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    ca_file: Path

    def server(self, name: str = "127.0.0.1", *, age: datetime.timedelta = _HOUR) -> ssl.SSLContext:
        """What a server of that name, or address, presents; good for two hours from `age` ago on."""
        key = ec.generate_private_key(ec.SECP256R1())
        began = datetime.datetime.now(datetime.UTC) - age
        certificate = (
            _builder(_named(name), self.name, key, began, 2 * _HOUR)
            .add_extension(x509.SubjectAlternativeName([_general(name)]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return _context(
            self.ca_file.with_name(f"{name}-{key.private_numbers().private_value % 10**9}"),
            certificate,
            key,
        )


def authority(folder: Path, name: str = "Test Authority") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    began = datetime.datetime.now(datetime.UTC) - _HOUR
    certificate = (
        _builder(_named(name), _named(name), key, began, 24 * _HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file = folder / f"{name.lower().replace(' ', '-')}.pem"
    ca_file.write_bytes(certificate.public_bytes(_PEM))
    return Authority(_named(name), key, ca_file)


def self_signed(folder: Path, name: str = "127.0.0.1") -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    began = datetime.datetime.now(datetime.UTC) - _HOUR
    certificate = (
        _builder(_named(name), _named(name), key, began, 2 * _HOUR)
        .add_extension(x509.SubjectAlternativeName([_general(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _context(folder / "self-signed", certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    began: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + life)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _context(
    stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    chain = stem.with_name(f"{stem.name}.chain.pem")
    chain.write_bytes(
        certificate.public_bytes(_PEM)
        + key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
