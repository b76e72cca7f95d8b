"""The tools that an agent gets over MCP, and the way of a call from its process to the daemon."""
