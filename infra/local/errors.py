"""What goes wrong with a local cluster."""


class ClusterError(Exception):
    """Names what is missing or failed, and the remedy."""
