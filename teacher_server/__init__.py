"""The teacher: LM-TAD, and the daemon that serves its scores.

request -> decode + validate -> admit -> batcher -> engine (model thread) -> encode -> response

    lmtad/      the model, its files, its training
    engine/     inference: batches of contexts -> scores           implements scorer.py
    answers/    what is in flight and what is remembered           knows scorer.py
    batching/   admission, fairness, pacing, the batcher           over answers and metrics.py
    client/     commands that ask a server from outside

`scorer.py` is the seam between serving and the model; `address.py` says where a server listens. Imports go down:
scorer <- engine, answers; lmtad <- engine; answers <- metrics <- batching <- the daemon; address <- client, daemon.

Words: a context is SOT and the tokens that a place is scored after; a place is a position in a context; a row is a
context with the candidates of its scored places, in the answer table and in a batch; a slot is where the table keeps
a row; a position is what a request has one answer for.
"""
