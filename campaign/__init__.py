"""Attempts to lose a result, to get a stale one, and to get past the checks: ``python -m campaign``."""
