"""The page: the files that the build put into `cloudagent_backend/_ui`.

Every other path is the page's own to route, so it gets `index.html`.
"""

import gzip
import mimetypes
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from cloudagent_backend.api.errors import ApiError
from cloudagent_protocol.errors import ErrorCode

BUILT: Final = Path(__file__).parent.parent / "_ui"

#: The build puts a hash of its content into each name under here.
_HASHED: Final = "/assets/"
_FOREVER: Final = "public, max-age=31536000, immutable"
_ASK_EACH_TIME: Final = "no-cache"
#: Below this, packing saves no packet.
_WORTH_PACKING_BYTES: Final = 1400


class Page:
    """Answers whatever no route does."""

    def __init__(self, directory: Path = BUILT) -> None:
        # Looked at once: what is asked for can then never lead out of the directory.
        self._files = {
            f"/{path.relative_to(directory).as_posix()}": path
            for path in directory.glob("**/*")
            if path.is_file()
        }
        # Packed once here, a few hundred kilobytes at most, and not again for every visitor.
        self._packed = {
            name: gzip.compress(path.read_bytes(), mtime=0)
            for name, path in self._files.items()
            if name.startswith(_HASHED)
            and path.suffix in {".js", ".css"}
            and path.stat().st_size > _WORTH_PACKING_BYTES
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if _is_api(scope["path"]):
            raise HTTPException(404)
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        accepted = Headers(scope=scope).get("accept-encoding", "")
        await self._answer(scope["path"], _takes_gzip(accepted))(scope, receive, send)

    def _answer(self, path: str, packed: bool) -> Response:
        if path.startswith(_HASHED):
            return self._hashed(path, packed)
        file = self._files.get(path, self._files.get("/index.html"))
        if file is None:
            raise ApiError(
                ErrorCode.UNAVAILABLE,
                "The page was not built into this installation; the API works.",
                next="In a clone, run `make up`, or `npm ci && npm run build` in backend/ui.",
            )
        return FileResponse(file, headers={"Cache-Control": _ASK_EACH_TIME})

    def _hashed(self, path: str, packed: bool) -> Response:
        if path not in self._files:
            raise HTTPException(404)
        headers = {"Cache-Control": _FOREVER}
        if path not in self._packed:
            return FileResponse(self._files[path], headers=headers)
        headers["Vary"] = "Accept-Encoding"
        if not packed:
            return FileResponse(self._files[path], headers=headers)
        headers["Content-Encoding"] = "gzip"
        media_type, _ = mimetypes.guess_type(path)
        return Response(self._packed[path], headers=headers, media_type=media_type)


def _takes_gzip(accepted: str) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not to rule it out (RFC 9110 §12.5.3)."""
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0") not in {"q=", "q=0."}
    return False


def _is_api(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")
