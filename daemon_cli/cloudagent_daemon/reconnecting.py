"""When the backend is tried again at once, instead of after a backoff: another key, or a way again."""

import math
from typing import Any, Final

import anyio

from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.keyfile import KeyFile
from cloudagent_daemon.tunnel import Tunnel

KEY_CHECK_S: Final = 1.0


class Reconnecting:
    """Heeds the key and the tunnel of one daemon, as far as it has them."""

    def __init__(self, client: LinkClient, key: KeyFile | None, tunnel: Tunnel | None) -> None:
        self._client = client
        self._key = key
        self._tunnel = tunnel

    async def watch_key(self) -> None:
        """While the key is rejected, looks for another one; no event tells of it."""
        while self._key:
            changed = self._client.changed
            rejected = self._client.standing.state == "unauthorized"
            if rejected and await self._key.renewed():
                self._client.reconnect()
            with anyio.move_on_after(KEY_CHECK_S if rejected else math.inf):
                await changed.wait()

    async def watch_tunnel(self) -> None:
        """Once the way is there again, nothing waits for the end of a backoff."""
        while self._tunnel:
            changed = self._tunnel.changed
            if self._tunnel.standing.state == "up" and self._client.standing.next_at is not None:
                self._client.reconnect()
            await changed.wait()

    async def reload(self) -> dict[str, Any]:
        """Takes another key over, if there is one. No run is touched."""
        renewed = await self._key.renewed() if self._key else False
        if renewed or self._client.standing.state != "connected":
            self._client.reconnect()
        return {
            "schema": "cloudagent.reload/1",
            "key_renewed": renewed,
            "note": self._key.note if self._key else "",
        }
