"""Fuzz targets: every reader of what comes from elsewhere, given any bytes.

The property is one: a reader returns, or raises a `ReportableError`. Any other exception, a hang, or an allocation out
of proportion to the input is a finding.

    target.py   what a target is, and how one is tried
    wire.py     requests, answers, descriptions
    files.py    teacher files, remembered answers, checkpoints, upstream's checkpoints, stores, generated trips
    text.py     HOSER's CSV files, YAML and overrides
    __main__.py coverage-guided, with atheris: make fuzz SECONDS=60

The same targets run for a moment in `make test` (test_fuzz_targets.py), with edits of their seeds that hypothesis
chooses. What either has found is a regression test beside the reader's other tests.
"""
