"""The router, seen: traces, cache policies replayed on them, statistics, gating references.

Everything here is pure or reads and writes its own files; no engine is needed.
"""
