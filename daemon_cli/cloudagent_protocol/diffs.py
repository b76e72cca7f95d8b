"""What a run changed in the repository that it worked in (docs/protocol.md section 15)."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: Files of one diff; of those beyond, the number.
MAX_FILES: Final = 300
#: Of all patches of a diff, as JSON strings in UTF-8: a frame has 1 MiB.
MAX_DIFF_BYTES: Final = 262_144
_Path = Annotated[str, StringConstraints(max_length=4_096)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class FileDiff(BaseModel):
    """One file that changed."""

    model_config = ConfigDict(extra="ignore")

    #: From the top of the work tree.
    path: _Path
    #: What it was called, if it was renamed.
    old_path: _Path | None = None
    status: Literal["added", "modified", "deleted", "renamed"] | str
    #: Lines.
    additions: _Count = 0
    deletions: _Count = 0
    #: Whether it is no text, or too large to be looked into: then there are no lines of it.
    binary: bool = False
    #: As `git diff` prints it, with its head; empty where there is no room for it.
    patch: str = ""
    #: Whether the end of the patch, or of a line in it, is left out.
    truncated: bool = False


class ChangeCount(BaseModel):
    """How much a run changed; null where that is not known: see `problem`."""

    model_config = ConfigDict(extra="ignore")

    files: _Count = 0
    additions: _Count = 0
    deletions: _Count = 0
    #: For a person: why there is no diff.
    problem: Annotated[str, StringConstraints(max_length=1_000)] | None = None


class Diff(BaseModel):
    """All that was different in a work tree after a run; what git ignores is not looked at."""

    model_config = ConfigDict(extra="ignore")

    #: The top of the work tree on its machine.
    root: _Path = ""
    files: Annotated[list[FileDiff], Field(max_length=MAX_FILES)] = Field(
        default_factory=list[FileDiff]
    )
    #: Files that changed and are not among `files`.
    more: _Count = 0
    #: Lines of all of them.
    additions: _Count = 0
    deletions: _Count = 0
    #: Whether another run worked in the same folder meanwhile: what it changed is in here too.
    shared: bool = False
    #: Whether the agent began before the state of before was known: what it changed first may be missing.
    late: bool = False
    #: Whether something was taken out because it looked like a key.
    redacted: bool = False
    problem: Annotated[str, StringConstraints(max_length=1_000)] | None = None

    @property
    def count(self) -> ChangeCount:
        return ChangeCount(
            files=len(self.files) + self.more,
            additions=self.additions,
            deletions=self.deletions,
            problem=self.problem,
        )
