"""Sweeps: Ray Tune + Optuna over any setting of a run. Ray's own package is ``from ray import tune`` here."""
