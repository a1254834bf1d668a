"""A long run against one daemon: does anything in it grow, does anything go wrong?

python -m benchmarks.soak --minutes 30
"""
