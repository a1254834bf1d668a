"""`pretrain`: an LM-TAD is trained on the trips of a store.

    trips -> road tokens -> spans (whole trips and crops) -> batches of similar length -> cross-entropy -> teacher file

Imports go one way: {config, corpus, layout, ranks} <- {trainer, checkpoint, candidates} <- session <- run.
"""
