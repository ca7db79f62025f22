"""Rolling a new version without losing a request."""
