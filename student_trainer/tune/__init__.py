"""Tuning: phases of slots, which workers fill with trials; every trial is training runs with shared seeds.

    plan -> study (slots in a storage) <- workers (claim, train, report, tell) ; study -> results, figures

A phase is an Optuna study of its own: `NAME-vanilla`, `NAME`, `NAME-final-distilled`, `NAME-final-vanilla`. Its budget
is a number of slots, made before anything runs; a slot whose worker is lost gets another attempt.
"""
