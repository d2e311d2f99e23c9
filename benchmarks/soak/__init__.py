"""A soak: a site under load for an hour while its operator works on it."""
