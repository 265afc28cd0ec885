"""Players: forward passes of the networks that a step trains, and the loss terms over their results."""
