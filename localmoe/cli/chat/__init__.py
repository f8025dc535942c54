"""``chat``: the conversation in a terminal, its commands and its screens."""
