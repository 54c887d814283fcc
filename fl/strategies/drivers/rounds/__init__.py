"""Rounds: clients train the same model, and a rule makes the next of what they did."""
