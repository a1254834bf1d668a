"""Commands that ask a running server, or a teacher file, from outside."""
