"""The teacher: LM-TAD, and the daemon that serves its scores.

request -> decode + validate -> admit -> batcher -> engine (model thread) -> encode -> response
"""
