"""Inference: a frozen LM-TAD scores batches of contexts, with the same bits whatever shares a batch."""
