"""Strategies that act when something happens: asynchronous ones, polls, several models at once."""
