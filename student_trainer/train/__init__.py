"""Training: batches and teacher answers -> losses -> steps -> checkpoints."""
