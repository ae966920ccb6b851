"""Fuzzing of every parser that takes an attacker's bytes: see `python -m tests.fuzz --help`."""
