"""Readers of the log: subscriptions, their handlers, and the worker that runs them."""
