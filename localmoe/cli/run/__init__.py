"""``run``: one answer, as text, as a document or as events."""
