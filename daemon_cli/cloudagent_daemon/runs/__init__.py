"""Runs: from a delivered message to exactly one outcome."""
