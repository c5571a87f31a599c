"""Tells other programs what happened, as Standard Webhooks has it: signed, retried, never into our own network."""
