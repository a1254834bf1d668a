"""Distillation: questions to a remote teacher, its answers, and the KL between the two models.

    batch -> query -> teacher (gRPC) -> reply -> target -> KL

Imports go one way: data <- model <- distill <- train.
"""
