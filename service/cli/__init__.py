"""The `winnow` command: runs the embedded stack, and is a client of the HTTP API for everything else."""

from service.cli.commands import app

__all__ = ["app"]
