"""Metrics that training and evaluation both compute, on plain arrays, so that a figure means the same in both.

What an evaluation alone needs (intervals, thresholds, calibration) is in ``rayzero.evaluation.metrics``.
"""
