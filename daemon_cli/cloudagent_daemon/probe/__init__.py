"""The way to a backend, step by step: looked at (look.py), and judged without network (judge.py)."""
