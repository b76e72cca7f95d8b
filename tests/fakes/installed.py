"""Our packages in an environment of their own, as an installer leaves them; and replaced by others."""

import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "cloudagent_daemon"
PACKAGES: Final = ("cloudagent", "cloudagent_daemon", "cloudagent_protocol")
#: Writes down what is imported, and what it was asked for.
WATCH: Final = """
import os, sys
if path := os.environ.get("FAKE_IMPORTS"):
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    sys.addaudithook(lambda event, args: event == "import" and os.write(
        handle, f"{os.getpid()} {args[0]}\\n".encode()) and None)
"""


class Installed:
    """The environment in `folder`. What we depend on comes from the one that runs the tests.

    Who starts it may see the folder elsewhere (`seen_as`). `command` is the daemon's, `site` where the packages are.
    """

    def __init__(
        self, folder: Path, version: str = "0.3.0", *, seen_as: Path | None = None
    ) -> None:
        self.folder = folder
        self._shebang = f"#!{seen_as or folder}/bin/python"
        self.command = folder / "bin" / "cloudagent-daemon"
        self.python = folder / "bin" / "python"
        self.site = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        self.site.mkdir(parents=True)
        self.command.parent.mkdir()
        (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n")
        self.python.symlink_to(Path(sys.base_prefix, "bin", "python3").resolve())
        (self.site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (self.site / "sitecustomize.py").write_text(WATCH)
        self.add(version)

    def remove(self) -> None:
        """As an uninstallation does."""
        for package in PACKAGES:
            shutil.rmtree(self.site / package)
        for info in self.site.glob(f"{NAME}-*.dist-info"):
            shutil.rmtree(info)
        self.command.unlink()

    def add(self, version: str) -> None:
        """As an installation does: the list of files comes last."""
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "daemon_cli" / package, self.site / package, ignore=ignored)
        said = self.site / "cloudagent_protocol" / "version.py"
        said.write_text(
            said.read_text().replace(
                'DISTRIBUTION: Final = "0.3.0"', f'DISTRIBUTION: Final = "{version}"'
            )
        )
        self.command.write_text(
            f"{self._shebang}\nimport sys\nfrom cloudagent_daemon.cli.main import main\nsys.exit(main())\n"
        )
        self.command.chmod(0o755)
        info = self.site / f"{NAME}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: cloudagent-daemon\nVersion: {version}\n"
        )
        (info / "RECORD").write_text(f"{NAME}/__init__.py,,\n")

    def break_it(self) -> None:
        """What is installed cannot be loaded."""
        (self.site / NAME / "daemon.py").write_text("raise ImportError('half of it is missing')\n")
        (next(self.site.glob(f"{NAME}-*.dist-info")) / "RECORD").write_text("other\n")
