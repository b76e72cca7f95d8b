"""`probe`: what exactly fails on the way, each step with what was seen and what helps."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cloudagent_daemon.link.way import way_to
from cloudagent_daemon.probe import judge
from cloudagent_daemon.probe.judge import Step
from cloudagent_daemon.probe.look import look
from cloudagent_daemon.probe.seen import Answer, Name, Proxied, Seen, Tcp, Tls, Upgrade
from fakes.backend import KEY, scripted_backend
from fakes.certificates import authority, self_signed
from fakes.front import connect_proxy, page_front, tls_front
from fakes.home import Home
from fakes.server import running_backend

URL = "https://agents.example.com"
VERSION = {"version": "0.3.0", "protocol": [1], "minimum_daemon_version": "0.3.0"}
JSON = "application/json"
GOOD = Seen(
    URL,
    name=Name("agents.example.com", ("203.0.113.7",)),
    tcp=Tcp("agents.example.com:443", 12.3),
    tls=Tls("TLSv1.3", "agents.example.com", "R11 (Let's Encrypt)", "2027-01-03"),
    http=Answer(200, "OK", JSON, body=dict(VERSION)),
    upgrade=Upgrade(opened=True),
    key=Answer(200, "OK", JSON, body={"id": "host_1", "name": "mbp"}),
    round_trips_ms=(21.0, 20.0, 90.0),
)


def steps(seen: Seen, **changes: object) -> dict[str, Step]:
    judged = judge.judge(replace(seen, **changes), [1], "0.3.0")  # type: ignore[arg-type]
    return {step.name: step for step in judged}


def code(seen: Seen, **changes: object) -> int:
    return judge.exit_code(list(steps(seen, **changes).values()))


# --- the judgement -------------------------------------------------------------------------


def test_a_good_way_is_told_with_its_values() -> None:
    told = steps(GOOD)
    assert {step.state for step in told.values()} == {"ok"}
    assert told["name"].seen == "agents.example.com is 203.0.113.7"
    assert told["connection"].seen == "agents.example.com:443 in 12 ms"
    assert "R11 (Let's Encrypt), good until 2027-01-03" in told["tls"].seen
    assert told["key"].seen == "accepted for mbp (host_1)"
    assert told["round trip"].seen == "21 ms (median of 3, slowest 90 ms)"
    assert code(GOOD) == 0


#: What cannot be seen once something below it fails.
NOTHING = {"http": Answer(error="x"), "upgrade": None, "key": None, "round_trips_ms": ()}


@pytest.mark.parametrize(
    ("changes", "failing", "seen", "fix"),
    [
        ({"name": Name("x", error="unknown"), "tcp": None, "tls": None}, "name", "unknown", "DNS"),
        ({"tcp": Tcp("x:443", error="refused"), "tls": None}, "connection", "refused", "running"),
        ({"tcp": Tcp("x:443", silent=True), "tls": None}, "connection", "drops", "--ssh-tunnel"),
        ({"proxied": Proxied("http://p", 407, "Auth"), "tls": None}, "proxy", "407", "PASSWORD"),
        ({"proxied": Proxied("http://p", 403, "No"), "tls": None}, "proxy", "403", "no_proxy"),
        ({"tls": Tls(error="bad", issuer="Me", verify_code=18)}, "tls", "self-signed", "--ca-file"),
        ({"tls": Tls(error="bad", issuer="Big Co", verify_code=20)}, "tls", "Big Co", "in between"),
        ({"tls": Tls(error="bad", issuer="R", verify_code=10)}, "tls", "expired", "clock"),
        ({"tls": Tls(error="bad", subject="b.example", issuer="R", verify_code=62)},
         "tls", "another name", "b.example"),
        ({"tls": Tls(error="no TLS there")}, "tls", "no TLS there", "https port"),
    ],
)  # fmt: skip
def test_what_fails_below_is_told_once(
    changes: dict[str, object], failing: str, seen: str, fix: str
) -> None:
    told = steps(GOOD, **{**NOTHING, **changes})
    assert [name for name, step in told.items() if step.state == "fail"] == [failing]
    assert seen in told[failing].seen
    assert fix in told[failing].next
    assert told["http"].seen == told["key"].seen == "not tried: see above"
    assert code(GOOD, **{**NOTHING, **changes}) == 5


@pytest.mark.parametrize(
    ("answer", "seen", "fix"),
    [
        (Answer(200, "OK", "text/html"), "web page", "login page"),
        (Answer(302, "Found", location="https://b"), "https://b", "name that address"),
        (Answer(502, "Bad Gateway", "text/html"), "502", "cloudagent-backend"),
        (Answer(404, "Not Found", "text/plain"), "not a backend", "address"),
        (Answer(403, "No", JSON, body={"detail": "Host?", "next": "--public-url"}), "Host?", "--p"),
    ],
)
def test_what_is_no_backend_is_named(answer: Answer, seen: str, fix: str) -> None:
    told = steps(GOOD, http=answer, upgrade=Upgrade(error="no"), key=None)
    assert [name for name, step in told.items() if step.state == "fail"] == ["http"]
    assert seen in told["http"].seen
    assert fix in told["http"].next


def test_a_websocket_that_does_not_come_through_is_told_though_requests_do() -> None:
    told = steps(GOOD, upgrade=Upgrade(error="answers 426"))
    assert told["websocket"].seen == "answers 426"
    assert "Upgrade" in told["websocket"].next
    assert told["key"].state == "ok"
    assert steps(GOOD, upgrade=Upgrade(key_refused=True))["websocket"].state == "ok"


def test_a_key_is_rejected_missing_or_without_a_verdict() -> None:
    rejected = Answer(401, "Unauthorized", JSON, body={"detail": "revoked"})
    assert steps(GOOD, key=rejected)["key"].seen == "401: revoked"
    assert code(GOOD, key=rejected) == 4
    assert (steps(GOOD, key=None)["key"].state, code(GOOD, key=None)) == ("skip", 0)
    assert code(GOOD, key=Answer(403, "Forbidden", "text/html")) == 5, "not a backend's verdict"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"protocol": [2, 3]}, "fail"),
        ({"protocol": "one"}, "fail"),
        ({"minimum_daemon_version": "0.10.0"}, "fail"),
        ({"minimum_daemon_version": "0.2.9"}, "ok"),
        ({"protocol": [1, 2]}, "ok"),
    ],
)
def test_versions_that_do_not_fit_are_told(change: dict[str, object], state: str) -> None:
    answer = Answer(200, "OK", JSON, body=VERSION | change)
    step = steps(GOOD, http=answer)["protocol"]
    assert step.state == state
    assert code(GOOD, http=answer) == (1 if state == "fail" else 0)


# --- the look ------------------------------------------------------------------------------


async def test_a_bad_certificate_is_shown_with_who_signed_it(tmp_path: Path) -> None:
    stranger, signer = authority(tmp_path, "Corporate Inspection"), authority(tmp_path)
    for context, issuer, number in (
        (stranger.server(), "Corporate Inspection", 20),
        (self_signed(tmp_path), "127.0.0.1", 18),
        (signer.server(age=timedelta(days=3)), "Test Authority", 10),
        (signer.server("other.example"), "Test Authority", 64),
    ):
        async with scripted_backend() as backend:
            port = int(backend.url.rpartition(":")[2])
            async with tls_front(context, port) as middle:
                way = way_to(f"https://{middle.address}", {}, ca_file=signer.ca_file)
                seen = await look(way, KEY)
                assert seen.tls is not None
                assert (seen.tls.issuer, seen.tls.verify_code) == (issuer, number)
                assert (middle.heard, backend.attempts) == (b"", 0)


async def test_a_login_page_hears_no_key(tmp_path: Path) -> None:
    async with page_front("<html>hotel</html>") as hotel:
        seen = await look(way_to(f"http://{hotel.address}", {}), KEY)
    assert seen.http is not None
    assert (seen.http.status, seen.http.is_ours, seen.key) == (200, False, None)
    assert KEY.encode() not in hotel.heard


async def test_a_proxy_is_asked_and_then_passed_through(tmp_path: Path) -> None:
    signer = authority(tmp_path)
    async with running_backend(tmp_path, public_url="https://agents.test") as backend:
        port = int(backend.url.rpartition(":")[2])
        key = backend.ana.host.raw_key
        async with (
            tls_front(signer.server("agents.test"), port) as front,
            connect_proxy(user="ana", password="p:w", detour=front.port) as proxy,
        ):
            environ = {"https_proxy": f"http://ana:p%3Aw@{proxy.address}"}
            way = way_to("https://agents.test", environ, ca_file=signer.ca_file)
            told = {s.name: s for s in judge.judge(await look(way, key), [1], "0.3.0")}
            assert {step.state for step in told.values()} == {"ok"}, told
            assert told["proxy"].seen == f"http://{proxy.address} lets us through"
            assert "p:w" not in str(told)
            wrong = way_to("https://agents.test", {"https_proxy": f"http://{proxy.address}"})
            seen = await look(wrong, key)
            assert seen.proxied is not None
            assert seen.proxied.status == 407
        assert key.encode() not in proxy.heard


async def test_a_running_daemon_is_not_superseded_by_a_look(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        seen = await look(way_to(backend.url, {}), backend.ana.host.raw_key)
        assert seen.upgrade == Upgrade(opened=True)
        assert backend.world.hub.connected == 0
        assert len(seen.round_trips_ms) == 5


# --- the command ---------------------------------------------------------------------------


async def test_the_command_tells_a_person_and_a_script(tmp_path: Path) -> None:
    home = Home(tmp_path)
    code_, _, error = await home.command("probe")
    assert code_ == 2
    assert "probe --server URL" in error
    async with running_backend(tmp_path) as backend:
        code_, out, _ = await home.command("probe", "--server", backend.url)
        assert code_ == 0, out
        assert "✓ websocket   comes through" in out
        key = backend.ana.host.raw_key
        await home.command("login", backend.url, "--api-key-file", "-", stdin=key)
        code_, out, _ = await home.command("probe", "--json")
        told = json.loads(out)
        assert (code_, told["schema"], told["ok"]) == (0, "cloudagent.probe/1", True)
        assert key not in out
        async with backend.client() as client:
            await client.post(f"/v1/host-machines/{backend.ana.host.id}/rotate-key")
        code_, out, _ = await home.command("probe")
        assert code_ == 4
        assert "✗ key         401: This machine key is not valid." in out
    code_, out, _ = await home.command("probe", "--server", "http://127.0.0.1:9")
    assert code_ == 5
    assert "✗ connection  127.0.0.1:9: Connection refused" in out


async def test_a_proxy_that_cannot_be_used_is_a_finding(tmp_path: Path) -> None:
    words = ("probe", "--server", "https://agents.test")
    code_, out, _ = await Home(tmp_path).command(*words, https_proxy="socks5://u:secret@x")
    assert code_ == 5
    assert "✗ way" in out
    assert "secret" not in out
