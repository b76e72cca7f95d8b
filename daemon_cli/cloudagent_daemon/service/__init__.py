"""The daemon as a service of the person who runs it: systemd's user manager, or launchd."""
