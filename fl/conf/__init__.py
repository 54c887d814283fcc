"""Hydra groups, one per package, one YAML per member."""
