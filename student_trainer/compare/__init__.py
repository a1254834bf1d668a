"""`student-trainer compare`: arms of runs, over seeds and pair by pair, and whether a difference is real."""
