"""Alembic's entry: runs the migrations on the connection that `service.db.migrate` hands over."""

from alembic import context

from service.tables import Table

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":  # several gateways may start at once; SQLite has one writer anyway
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7946273)")
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
