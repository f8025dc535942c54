"""Pure decisions: from facts and a memory measurement to a plan. No I/O in this room."""
