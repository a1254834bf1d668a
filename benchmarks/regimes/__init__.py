"""What a student gains from its teacher: arms x amounts of labelled trips x seeds, on next roads and on whole trips."""
