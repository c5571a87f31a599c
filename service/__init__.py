"""Winnow's core and its gateway: datasets, jobs, models, storage and the HTTP contract. Never imports torch."""
