"""Faults on purpose: what happens to training runs when their teacher, or the network between, fails.

    python -m tests.chaos --out DIR [--only fault=stop,reset transport=stream/window trainers=1] [--seconds-of-stop 30]

A cell of the matrix is a fault, a way to ask and a number of trainers. Each trains a tiny city through a proxy, meets
the fault in the middle and must end with the bits of a run that nobody disturbed, or be refused where that is right.

    proxy.py      TCP between trainer and teacher, which delays, damages and breaks
    processes.py  teachers and trainers: started, watched, ended
    faults.py     what is done to them
    matrix.py     the cells, how one is run, the table
    kills.py      a trainer killed at random steps and resumed
"""
