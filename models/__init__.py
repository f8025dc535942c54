"""Bundled data: the model ``nano`` and the catalog of known names."""
