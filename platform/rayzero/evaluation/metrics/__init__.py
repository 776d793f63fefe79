"""Metrics by subject, on plain arrays: they know nothing of lakes, bundles or Ray."""
