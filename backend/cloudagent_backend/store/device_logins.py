"""Machines that wait for a person to let them in: the device flow's rows (RFC 8628).

The machine key is made in the transaction that hands it out, so it is never kept, and whoever asks
a second time finds nothing to hand out.
"""

import secrets
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cloudagent_backend.store import clock, hosts, keys, users
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.device import (
    CODE_LENGTH,
    CODE_LETTERS,
    DeviceCodeRequest,
    DeviceState,
    DeviceToken,
)
from cloudagent_protocol.ids import HostId, UserId
from cloudagent_protocol.resources import HostMachineCreate

#: How long a code that is over is still told apart from one that never was.
_KEPT_US: Final = 3_600_000_000


@dataclass(frozen=True)
class DeviceLoginRow:
    user_code: str
    hostname: str
    os: str
    daemon_version: str
    address: str
    host_id: HostId | None
    state: DeviceState
    user_id: UserId | None
    name: str | None
    created_us: int
    expires_us: int

    @property
    def over(self) -> bool:
        return self.expires_us <= clock.now_us()


@dataclass(frozen=True)
class Codes:
    device_code: str
    user_code: str


@dataclass(frozen=True)
class Issued:
    token: DeviceToken
    user_id: UserId
    #: The link of its older key, if the host was known before, has to go.
    host_id: HostId


class NotIssued(StrEnum):
    """Why there is no key, in the words of RFC 8628 §3.5 and RFC 6749 §5.2."""

    PENDING = "authorization_pending"
    DENIED = "access_denied"
    EXPIRED = "expired_token"
    UNKNOWN = "invalid_grant"


def begin(
    c: sqlite3.Connection,
    asked: DeviceCodeRequest,
    *,
    address: str,
    known: HostRow | None,
    life_s: int,
) -> Codes:
    """A machine begins to wait; `known` is the host whose key it has shown."""
    device_code, now = keys.new_secret(), clock.now_us()
    user_code = _unused_code(c)
    c.execute(
        "INSERT INTO device_logins (hash, user_code, hostname, os, daemon_version, address, host_id,"
        " created_us, expires_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            keys.digest(device_code),
            user_code,
            asked.hostname,
            asked.os,
            asked.daemon_version,
            address,
            known.id if known else None,
            now,
            now + life_s * 1_000_000,
        ),
    )
    return Codes(device_code, user_code)


def waiting(c: sqlite3.Connection, address: str) -> tuple[int, int]:
    """How many machines wait: at this address, and in all."""
    here, everywhere = c.execute(
        "SELECT count(*) FILTER (WHERE address = ?), count(*) FROM device_logins"
        " WHERE expires_us > ?",
        (address, clock.now_us()),
    ).fetchone()
    return here, everywhere


def by_user_code(c: sqlite3.Connection, user_code: str) -> DeviceLoginRow | None:
    """The login with this code, if its time is not over."""
    row = c.execute("SELECT * FROM device_logins WHERE user_code = ?", (user_code,)).fetchone()
    found = _row(row) if row else None
    return None if found is None or found.over else found


def decide(
    c: sqlite3.Connection, user_code: str, user_id: UserId, state: DeviceState, name: str | None
) -> bool:
    """A person's answer; false if there was one before."""
    done = c.execute(
        "UPDATE device_logins SET state = ?, user_id = ?, name = ?"
        " WHERE user_code = ? AND state = ? AND expires_us > ?",
        (state.value, user_id, name, user_code, DeviceState.PENDING.value, clock.now_us()),
    )
    return done.rowcount == 1


def standing(c: sqlite3.Connection, device_code: str) -> NotIssued | None:
    """Why there is no key yet; None if there would be one now."""
    row = _by_device_code(c, device_code)
    if row is None:
        return NotIssued.UNKNOWN
    if row.over:
        return NotIssued.EXPIRED
    match row.state:
        case DeviceState.PENDING:
            return NotIssued.PENDING
        case DeviceState.DENIED:
            return NotIssued.DENIED
        case DeviceState.APPROVED:
            return None


def redeem(c: sqlite3.Connection, device_code: str) -> Issued | NotIssued:
    """The key of an approved login. The code is used up with it."""
    if why_not := standing(c, device_code):
        return why_not
    row = _by_device_code(c, device_code)
    assert row is not None
    assert row.user_id is not None, "an approval has an author"
    c.execute("DELETE FROM device_logins WHERE hash = ?", (keys.digest(device_code),))
    user = users.load(c, row.user_id)
    assert user is not None, "accounts are never removed"
    # Its owner may have removed it meanwhile, and it may be another person's: then it is a new one.
    known = hosts.load(c, user.id, row.host_id) if row.host_id else None
    made_id, key, name = _renew(c, known, row) if known else _make(c, user.id, row)
    token = DeviceToken(
        access_token=key,
        host_id=made_id,
        host_name=name,
        approved_by=user.email,
        known_before=known is not None,
    )
    return Issued(token, user.id, made_id)


def forget_old(c: sqlite3.Connection) -> None:
    c.execute("DELETE FROM device_logins WHERE expires_us <= ?", (clock.now_us() - _KEPT_US,))


def suggested_name(row: DeviceLoginRow) -> str:
    """What the machine is called unless the person says otherwise: its hostname's first part."""
    return row.hostname.partition(".")[0].strip()[:100] or "machine"


def _renew(c: sqlite3.Connection, known: HostRow, row: DeviceLoginRow) -> tuple[HostId, str, str]:
    name = row.name or known.name
    hosts.rename(c, known.id, name)
    return known.id, hosts.rotate_key(c, known.id), name


def _make(c: sqlite3.Connection, user_id: UserId, row: DeviceLoginRow) -> tuple[HostId, str, str]:
    made = hosts.create(
        c,
        user_id,
        HostMachineCreate(
            name=row.name or suggested_name(row),
            hostname=row.hostname,
            os=row.os[:50],
            daemon_version=row.daemon_version[:50],
        ),
    )
    return made.id, made.raw_key, made.name


def _unused_code(c: sqlite3.Connection) -> str:
    while True:
        code = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))
        taken = c.execute("SELECT 1 FROM device_logins WHERE user_code = ?", (code,)).fetchone()
        if taken is None:
            return code


def _by_device_code(c: sqlite3.Connection, device_code: str) -> DeviceLoginRow | None:
    row = c.execute(
        "SELECT * FROM device_logins WHERE hash = ?", (keys.digest(device_code),)
    ).fetchone()
    return _row(row) if row else None


def _row(row: sqlite3.Row) -> DeviceLoginRow:
    return DeviceLoginRow(
        user_code=row["user_code"],
        hostname=row["hostname"],
        os=row["os"],
        daemon_version=row["daemon_version"],
        address=row["address"],
        host_id=row["host_id"],
        state=DeviceState(row["state"]),
        user_id=row["user_id"],
        name=row["name"],
        created_us=row["created_us"],
        expires_us=row["expires_us"],
    )
