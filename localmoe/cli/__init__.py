"""Commands, and how their results look on a screen, in a pipe and as JSON."""
