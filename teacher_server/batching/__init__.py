"""Dynamic batching: who is admitted, who is next, how much a batch holds."""
