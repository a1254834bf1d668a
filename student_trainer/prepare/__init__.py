"""Raw HOSER directory -> store: read, check, derive, measure, write. The flow is in `run`."""
