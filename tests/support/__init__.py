"""What several test modules use: fakes, small cities, the real job tables."""
