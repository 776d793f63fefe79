"""The ops of the alignment systems beside their plain formulas: ``python -m tests.benchmarks.alignment``.

Every other module of this package measures one op and lists what it measures in ``CASES``.
"""
