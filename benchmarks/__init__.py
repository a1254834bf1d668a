"""Benchmarks: `python -m benchmarks [section ...]`.

Everything that a section compares is measured in the same run, by turns, and quoted as a ratio: absolute
figures say more about the machine than about the code.
"""
