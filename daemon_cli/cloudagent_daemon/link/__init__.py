"""The link to the backend: transport, client and the spool that makes it lossless."""
