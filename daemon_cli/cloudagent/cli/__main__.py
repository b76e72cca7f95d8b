"""For `python -m cloudagent.cli`."""

from cloudagent.cli import main

main()
