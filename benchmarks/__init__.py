"""Benchmarks: each compares two ways of doing one thing, measured in turn in one run.

A new benchmark is one module with ``run(*, small) -> list[Row]`` and one line in ``BENCHMARKS`` of
``__main__.py``. Seconds depend on the machine and on what else it does; the ratio of two that alternate does so
much less.
"""
