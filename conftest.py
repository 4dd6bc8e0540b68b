"""Registers what pytest needs to know, and nothing else."""

pytest_plugins = [
    "pytester",
    "fixtures.options",
    "fixtures.session",
    "fixtures.clauses",
    "fixtures.benchmarks",
    "fixtures.verdicts",
    "fixtures.selftest",
]
