"""The built-in agent: a small model-and-tools loop, a program that the daemon starts like any other.

Nothing is imported here, nor pydantic, `mcp` or the protocol package anywhere below: every message
starts this program anew, and its first word should come in a quarter of a second.
"""
