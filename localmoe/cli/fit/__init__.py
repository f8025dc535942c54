"""``fit`` and ``plan``: will it run here, and laid out how."""
