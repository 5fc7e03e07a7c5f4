"""The same paths on a PostgreSQL of its own (``servers/postgres.py``), each against its own raw loop with the same driver."""
