"""A conversation: template, reasoning, session, and the turn that runs on an engine."""
