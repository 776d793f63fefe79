"""Vision and text encoders behind one interface each: shipped inside wheels, from a hub id, or a local folder."""

from transformers.utils.logging import disable_progress_bar

# A bar per encoder and worker would bury the run's own lines.
disable_progress_bar()
