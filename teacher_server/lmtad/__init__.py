"""LM-TAD, the teacher's model: its architecture, its files, its training."""
