"""A terminal: what is written on it line by line, the line typed into it, Ctrl-C."""
