"""Alembic's entry: runs the migrations on the connection that perfsuite.results hands over."""

from alembic import context

from perfsuite.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
