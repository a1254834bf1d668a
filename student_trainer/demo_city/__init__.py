"""A synthetic city in HOSER format: streets, then drivers and their trips. The flow is in `run`."""
