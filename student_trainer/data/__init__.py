"""From a store to batches: road network, trips in a seeded order, candidates, padded tensors; tables and geometry."""
