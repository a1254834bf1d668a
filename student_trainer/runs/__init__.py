"""What a training run leaves behind: which file is where, and its checkpoints. Read by training and by whoever uses a
student.

Imports go one way: {data, runs} <- model <- {predict, generate, train}.
"""
