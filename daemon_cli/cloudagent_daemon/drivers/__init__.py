"""What the daemon knows of each coding agent: how to start it and what its lines mean."""
