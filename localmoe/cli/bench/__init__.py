"""``bench``: measuring this machine with a model, and the search for faster settings."""
