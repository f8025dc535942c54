"""What a model's routers choose: traces, statistics, and cache policies replayed on traces.

Everything here is pure, or reads and writes its own files; no engine is needed.
"""
