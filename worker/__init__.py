"""The worker: what runs a job, one module a job kind."""
