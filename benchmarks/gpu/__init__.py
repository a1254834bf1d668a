"""What the system does on an accelerator: one command that measures all of it, beside its limits and predictions.

__main__     runs the parts, each in a process of its own with a limit, and writes gpu.json and gpu.md after each
part         one part, in its process
record       figures as they are found
predictions  limits and predictions of each figure, made before anything had run on a GPU
teachers     all that the parts need of the teacher's engine
pack         what must travel to a machine without a network
"""
