"""From a directory of models to reports: generate, evaluate, compare, report; only what is not there yet."""
