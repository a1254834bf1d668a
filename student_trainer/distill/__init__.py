"""Distillation: questions to a remote teacher, its answers, and the KL between the two models.

    batch -> query -> client: retried, cut for several teachers, sent (gRPC) -> reply -> target -> KL -> loss

The package may import `data` and `model`.
"""
