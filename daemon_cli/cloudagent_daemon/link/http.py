"""Single requests to the backend, over the same way as the link, and why one had no answer."""

from typing import Any, Final, cast

import httpx2

from cloudagent_daemon.link.failures import peer, proxy_refusal, why_not
from cloudagent_daemon.link.way import Way
from cloudagent_protocol.version import DISTRIBUTION

TIMEOUT_S: Final = 15.0


def client(way: Way) -> httpx2.AsyncClient:
    """A client whose requests begin with `/v1/...`; it follows no redirects: the key is for this server."""
    proxy = httpx2.Proxy(way.proxy, ssl_context=way.proxy_tls) if way.proxy else None
    transport = httpx2.AsyncHTTPTransport(
        verify=way.tls if way.tls is not None else True,
        trust_env=False,
        proxy=proxy,
        uds=str(way.socket) if way.socket else None,
    )
    return httpx2.AsyncClient(
        base_url=way.server_url,
        transport=transport,
        timeout=TIMEOUT_S,
        headers={"User-Agent": f"cloudagent-daemon/{DISTRIBUTION}"},
    )


def body_of(answer: httpx2.Response) -> dict[str, Any]:
    """The JSON object that an answer holds, or an empty one."""
    try:
        body: Any = answer.json()
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


def is_ours(answer: httpx2.Response) -> bool:
    """Whether a backend has answered, and not something in between."""
    return "json" in answer.headers.get("content-type", "")


def why_no_answer(error: Exception, way: Way) -> str:
    """Why a request had no answer, for a person."""
    match error:
        case httpx2.ProxyError():
            return proxy_refusal(way, str(error))
        case httpx2.TimeoutException():
            return f"{peer(way)} does not answer in time"
        case _:
            return why_not(error, way)
