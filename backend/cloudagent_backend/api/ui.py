"""The page: the files that the build put into `cloudagent_backend/_ui`.

Every other path is the page's own to route, so it gets `index.html`.
"""

from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from cloudagent_backend.api.errors import ApiError
from cloudagent_protocol.errors import ErrorCode

BUILT: Final = Path(__file__).parent.parent / "_ui"

#: The build puts a hash of its content into each name under here.
_HASHED: Final = "/assets/"
_FOREVER: Final = "public, max-age=31536000, immutable"
_ASK_EACH_TIME: Final = "no-cache"


class Page:
    """Answers whatever no route does."""

    def __init__(self, directory: Path = BUILT) -> None:
        # Looked at once: what is asked for can then never lead out of the directory.
        self._files = {
            f"/{path.relative_to(directory).as_posix()}": path
            for path in directory.glob("**/*")
            if path.is_file()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if _is_api(scope["path"]):
            raise HTTPException(404)
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        await self._answer(scope["path"])(scope, receive, send)

    def _answer(self, path: str) -> FileResponse:
        if path.startswith(_HASHED):
            if path not in self._files:
                raise HTTPException(404)
            return FileResponse(self._files[path], headers={"Cache-Control": _FOREVER})
        file = self._files.get(path, self._files.get("/index.html"))
        if file is None:
            raise ApiError(
                ErrorCode.UNAVAILABLE,
                "The page was not built into this installation; the API works.",
                next="In a clone, run `make up`, or `npm ci && npm run build` in backend/ui.",
            )
        return FileResponse(file, headers={"Cache-Control": _ASK_EACH_TIME})


def _is_api(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")
