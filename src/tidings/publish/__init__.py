"""Publishing: one INSERT into the log, in the caller's own transaction."""
