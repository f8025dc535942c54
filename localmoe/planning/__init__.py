"""From facts and the engine's memory figures to a plan and its speed. Pure functions, no I/O."""
