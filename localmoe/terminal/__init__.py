"""Terminals: answers and tables on them, the input line, Ctrl-C. Knows no command."""
