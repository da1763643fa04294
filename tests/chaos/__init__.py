"""Chaos: faults of every kind, at random moments, for as long as there is time; see `python -m tests.chaos --help`."""
