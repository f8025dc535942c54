"""``localmoe serve``: the model for editors, agents and web pages, over HTTP.

A request is read and checked by its dialect (``openai_chat`` …) into an ``Ask``, is let in
(``admission``), answered from a thread of its own (``answering``), and its events are written by
the dialect's ``Writer`` (``replies``). ``access`` says who may come in, ``serving`` runs it all.
"""
