"""From raw HOSER files to batches: raw -> network features -> store -> batch."""
