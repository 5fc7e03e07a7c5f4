"""From a log to a broker and back, and from somebody else's outbox table to a broker."""
