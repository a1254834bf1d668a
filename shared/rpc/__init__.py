"""Code generated from `proto/` by `make proto`; only this file is committed."""
