"""``config`` and ``completion``: what need not be typed."""
