"""What can go wrong in an evaluation."""


class EvaluationError(RuntimeError):
    """An evaluation would be empty, impossible or misleading; the message names the lake, the split and the remedy."""
