"""A new user's first hour, typed: clone, demo, own city, report; what is printed is in `first_hour.txt`.

Run with `python -m tests.walk`; `--accept` makes what is printed now the golden file.
"""
