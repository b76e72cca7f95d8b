"""The language that backend, daemon and client speak: models, frames, error codes, the link.

It imports pydantic and the standard library only, so that every side can hold it.
"""
