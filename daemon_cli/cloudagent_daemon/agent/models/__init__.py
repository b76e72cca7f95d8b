"""The models that the built-in agent can ask."""
