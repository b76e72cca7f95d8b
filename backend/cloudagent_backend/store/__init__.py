"""What is remembered: one file per aggregate, plain functions on a `sqlite3.Connection`.

They never commit: `Database.write` does, for all that was asked of it at once.
"""
