"""What the built-in agent can do: the bridge's tools, and reading files of its folder."""
