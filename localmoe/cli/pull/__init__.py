"""``pull``: a model from the Hub onto this machine."""
