"""The student's data and model as one writes them down first, from the formulas: what the sections compare with."""
