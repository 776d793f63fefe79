"""RayZero: radiology vision-language alignment, from reports to zero-shot answers."""

__version__ = "0.1.0"
