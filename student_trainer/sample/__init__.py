"""Trips drawn from the teacher on the road network, to train on: many walkers advance together. Flow: `run`."""
