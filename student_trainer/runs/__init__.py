"""What jobs that make runs have in common: where their values go."""
