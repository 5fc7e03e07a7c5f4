"""A shop: an order service and its consumers, which know events and not each other. See README.md beside this file."""
