"""localmoe: the runtime for Mixture-of-Experts language models on ordinary machines."""

__version__ = "0.1.0"
