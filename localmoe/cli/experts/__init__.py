"""``experts``: the routing of a model, recorded, shown, compared, simulated, reported."""
