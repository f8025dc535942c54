"""Calls of tools: how a model writes them, what is read of them, the grammar that holds them."""
