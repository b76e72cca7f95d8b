"""What was found, and how a person is told: failures and warnings first, each with its fix."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from cloudagent_daemon.log import visible, without_secrets

SCHEMA: Final = "cloudagent.doctor/1"
SECTIONS: Final = ("Environment", "Connection", "Service", "Runtimes", "Agents")
State: TypeAlias = Literal["ok", "warn", "fail", "skip"]
#: One of our commands as a person types it: "stop" → "cloudagent-daemon stop --profile fr".
Command: TypeAlias = Callable[[str], str]

_MARK: Final = {"ok": "✓", "warn": "!", "fail": "✗", "skip": "-"}
_LONGEST: Final = 300
_COLUMN: Final = 12


@dataclass
class Finding:
    section: str
    name: str
    state: State
    #: What was seen, for a person.
    detail: str
    #: The command, or the act, that mends it.
    fix: str = ""
    #: Mends it without harm; returns what it did.
    repair: Callable[[], str] | None = field(default=None, repr=False)

    def json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "state": self.state,
            "detail": shown(self.detail),
            "fix": shown(self.fix) or None,
        }


def shown(text: str) -> str:
    """One line without keys, without anything that could steer a terminal, of bounded length."""
    line = visible(without_secrets(text[: 4 * _LONGEST]))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def failed(findings: Iterable[Finding], *, strict: bool) -> bool:
    """Whether the command exits with 1."""
    bad = ("fail", "warn") if strict else ("fail",)
    return any(one.state in bad for one in findings)


def mend(findings: Sequence[Finding]) -> list[str]:
    """Does what is safe; returns what was done. What is mended becomes `ok`."""
    done: list[str] = []
    for one in findings:
        if one.repair is None or one.state in ("ok", "skip"):
            continue
        try:
            said = one.repair()
        except OSError as error:
            one.detail += f"; it could not be mended: {error}"
            continue
        done.append(said)
        one.state, one.detail, one.fix = "ok", said, ""
    return done


def lines(findings: Sequence[Finding], *, where: str) -> list[str]:
    """All of `doctor`, for a person."""
    bad = [one for one in findings if one.state in ("fail", "warn")]
    bad.sort(key=lambda one: one.state != "fail")
    told = [line for one in bad for line in (_line(one), *_fix(one))]
    if told:
        told.append("")
    for section in SECTIONS:
        good = [one for one in findings if one.section == section and one not in bad]
        if good:
            told += [section, *(f"  {_line(one)}" for one in good)]
    return [*told, "", _summary(findings, where)]


def _line(one: Finding) -> str:
    return f"{_MARK[one.state]} {one.name:{_COLUMN}} {shown(one.detail)}"


def _fix(one: Finding) -> list[str]:
    return [f"  {'':{_COLUMN}} fix   {shown(one.fix)}"] if one.fix else []


def _summary(findings: Sequence[Finding], where: str) -> str:
    count = {state: sum(one.state == state for one in findings) for state in ("fail", "warn", "ok")}
    words = [
        f"{count['fail']} to mend" if count["fail"] else "",
        f"{count['warn']} to know of" if count["warn"] else "",
        f"{count['ok']} fine",
    ]
    return f"{', '.join(filter(None, words))}; checked {where}"
