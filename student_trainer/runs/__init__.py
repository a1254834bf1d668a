"""What runs leave behind, named once: which file is where, checkpoints, and where values go. Read by training and by
whoever uses a student.

Imports go one way: {data, runs} <- model <- {predict, generate, train}.
"""
