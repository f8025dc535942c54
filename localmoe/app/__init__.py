"""What every front end does: find a model, know the machine, plan, forecast, download, load, ask.

A front end (``localmoe.cli``, ``localmoe.api``) turns what its user wants into the records of
``requests`` and implements ``listener.Listener``; nothing in here knows a terminal, an argument
parser or a network protocol.
"""
