"""What ``ray job submit`` runs. Each module is a command: ``python -m jobs.NAME --help``."""
