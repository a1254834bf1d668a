"""`headroom`: what a teacher could still teach a student, before anyone trains."""
