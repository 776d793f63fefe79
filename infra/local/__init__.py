"""A real Ray cluster on this machine: ``python -m infra.local up`` and ``down``."""
