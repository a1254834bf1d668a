"""The teacher as the trainer sees it: something that answers queries later."""
