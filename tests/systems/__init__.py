"""The installed command on machines unlike this one: preloaded libraries, mounts, limits."""
