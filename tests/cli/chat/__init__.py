"""The chat as people use it: terminals, pipes, the screen."""
