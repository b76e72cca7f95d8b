"""What surrounds every command: its errors are told in three lines and become exit codes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import typer

from cloudagent import errors
from cloudagent.errors import CloudAgentError
from cloudagent.terminal import ExitCode, failure


@dataclass
class Options:
    """What was said before the command."""

    debug: bool = False


options: Final = Options()


def told(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its errors told and turned into exit codes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except CloudAgentError as error:
            if options.debug:
                raise
            failure(str(error), error.why, error.next_step)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            # The edge of the command: a person gets three lines, and the trace when they ask for it.
            if options.debug:
                raise
            failure(
                "cloudagent ended with a fault of its own",
                f"{type(error).__name__}: {error}",
                "the same with `cloudagent --debug …` (shows where), and tell us",
            )
            raise typer.Exit(ExitCode.FAILED) from error

    return run


def exit_code(error: CloudAgentError) -> ExitCode:
    match error:
        case errors.NotLoggedInError() | errors.AuthenticationError():
            return ExitCode.NOT_LOGGED_IN
        case errors.ConfigurationError():
            return ExitCode.CONFIGURATION
        case errors.ConnectionFailedError() | errors.UnexpectedAnswerError():
            return ExitCode.UNREACHABLE
        case errors.ConflictError() | errors.OccupiedError():
            return ExitCode.CONFLICT
        case errors.InvalidRequestError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILED
