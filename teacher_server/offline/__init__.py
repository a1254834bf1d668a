"""Answers in a file: everything that training on a store asks, asked at once, of a teacher file or of a daemon.

trips -> distinct rows -> teacher -> answers file
"""
