"""The command line: what was typed, and results on a screen, in a pipe and as JSON."""
