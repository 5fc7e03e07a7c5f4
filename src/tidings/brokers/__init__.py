"""Brokers carry events between services: the port, and an adapter for each technology."""
