"""The HTTP and WebSocket surface: thin routes over the store and the delivery service."""
