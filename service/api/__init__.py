"""The HTTP contract: routers, wire schemas, and one table from error to status. Nothing else."""
