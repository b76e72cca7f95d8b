"""Completion of agent names in the shell."""


def complete_agents(incomplete: str) -> list[str]:
    """The names of the person's agents; none if the server is slow or away."""
    from cloudagent.client import CloudAgent
    from cloudagent.errors import CloudAgentError

    try:
        with CloudAgent(timeout_s=1.0, max_retries=0) as ca:
            names = [agent.name for agent in ca.agents.list()]
    except CloudAgentError:
        return []
    return [name for name in names if name.startswith(incomplete)]
