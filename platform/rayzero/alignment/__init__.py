"""The published systems: one file each, one contract (``base``), looked up by name (``registry``)."""
