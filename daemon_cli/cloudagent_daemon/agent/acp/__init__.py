"""The built-in agent for editors: the Agent Client Protocol, version 1 (agentclientprotocol.com).

`server.py` answers an editor's requests, `conversation.py` is one session with its turns, `telling.py`
puts what the loop does into the protocol's words, `peer.py` is JSON-RPC on standard input and output.
"""
