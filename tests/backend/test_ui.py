"""The page's files, and the policy they go out with."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from cloudagent_backend.app import create_app
from cloudagent_backend.config import Settings


@asynccontextmanager
async def page_client(directory: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    app = create_app(Settings(database_url=str(directory / "x.db")), page=directory / "_ui")
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def build(directory: Path) -> None:
    (directory / "_ui" / "assets").mkdir(parents=True)
    (directory / "_ui" / "index.html").write_text("<!doctype html>page")
    (directory / "_ui" / "icon.svg").write_text("<svg/>")
    (directory / "_ui" / "assets" / "index-abc.js").write_text("1")
    (directory / "secret.txt").write_text("secret")


async def test_every_path_that_is_no_file_is_the_pages_own(tmp_path: Path) -> None:
    build(tmp_path)
    async with page_client(tmp_path) as client:
        for path in ("/", "/a/frontend", "/setup?k=x", "/index.html"):
            answer = await client.get(path)
            assert answer.text.endswith("page")
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["content-type"].startswith("text/html")


async def test_hashed_files_are_kept_for_ever_and_missing_ones_are_missing(tmp_path: Path) -> None:
    build(tmp_path)
    async with page_client(tmp_path) as client:
        script = await client.get("/assets/index-abc.js")
        assert "immutable" in script.headers["cache-control"]
        assert "javascript" in script.headers["content-type"]
        assert (await client.get("/assets/index-old.js")).status_code == 404
        assert (await client.get("/icon.svg")).headers["content-type"] == "image/svg+xml"


async def test_large_assets_go_out_packed_to_who_can_unpack_them(tmp_path: Path) -> None:
    build(tmp_path)
    script = "let shop = 1;\n" * 1000
    (tmp_path / "_ui" / "assets" / "index-big.js").write_text(script)
    async with page_client(tmp_path) as client:
        sizes: dict[str, int] = {}
        for accepted in ("gzip, deflate, br", "identity", "gzip;q=0", "gzip; q=0.0", "GZIP;q=0.5"):
            headers = {"Accept-Encoding": accepted}
            answer = await client.get("/assets/index-big.js", headers=headers)
            assert answer.text == script
            assert answer.headers["vary"] == "Accept-Encoding"
            assert "immutable" in answer.headers["cache-control"]
            assert "javascript" in answer.headers["content-type"]
            sizes[accepted] = int(answer.headers["content-length"])
        packed = {accepted for accepted, size in sizes.items() if size < len(script) / 10}
        assert packed == {"gzip, deflate, br", "GZIP;q=0.5"}
        head = await client.head("/assets/index-big.js", headers={"Accept-Encoding": "gzip"})
        assert (head.content, head.headers["content-encoding"]) == (b"", "gzip")
        small = await client.get("/assets/index-abc.js")
        assert "content-encoding" not in small.headers


async def test_nothing_outside_the_built_page_can_be_read(tmp_path: Path) -> None:
    build(tmp_path)
    async with page_client(tmp_path) as client:
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/assets/..%2f..%2fsecret.txt"):
            answer = await client.get(path)
            assert "secret" not in answer.text


async def test_a_page_that_was_not_built_says_so(tmp_path: Path) -> None:
    async with page_client(tmp_path) as client:
        answer = await client.get("/")
        assert answer.status_code == 503
        assert "not built" in answer.json()["detail"]
        assert "npm" in answer.json()["next"]


async def test_the_pages_policy_allows_nothing_inline_and_nothing_foreign(tmp_path: Path) -> None:
    build(tmp_path)
    async with page_client(tmp_path) as client:
        for path in ("/", "/assets/index-abc.js", "/v1/version", "/v1/none"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            for rule in (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "img-src 'self' data:",
                "connect-src 'self'",
                "frame-ancestors 'none'",
                "base-uri 'none'",
                "form-action 'self'",
                "require-trusted-types-for 'script'",
            ):
                assert rule in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cross-origin-opener-policy"] == "same-origin"
