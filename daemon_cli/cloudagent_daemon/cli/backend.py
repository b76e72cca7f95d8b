"""The script `cloudagent-backend`, which the light install has too, to say how to get the rest."""

import sys


def main() -> None:
    try:
        from cloudagent_backend.cli import main as backend
    except ModuleNotFoundError as error:
        print(
            f"cloudagent-backend needs more packages than are installed here ({error.name}).\n"
            "next: install cloudagent-daemon[backend]",
            file=sys.stderr,
        )
        sys.exit(2)
    backend()


if __name__ == "__main__":
    main()
