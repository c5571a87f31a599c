"""The embedded stack: broker, worker and gateway on one machine, under one supervisor (`winnow up`)."""
