"""How a message gets from a person to an agent's machine, and what comes back."""
