"""Attacks on a classifier's input: batched, on the model's device, leaving the model as they found it."""
