"""TensorBoard's events of a run: where they land, and what a resumed run leaves of those before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayzero.training.events import Events


@pytest.mark.parametrize("address", ["{}/tensorboard", "file://{}/tensorboard"])
def test_a_resumed_run_keeps_the_figures_of_its_checkpoint_s_step(address: str, tmp_path: Path) -> None:
    folder = address.format(tmp_path)
    killed = Events(folder, first_step=0)
    for step in (5, 10, 12):
        killed.writer.add_scalar("validation/loss", step, step)
    killed.close()
    (before,) = (tmp_path / "tensorboard").iterdir()
    # Files are read in the order of their names, which begin with the second of their making.
    before.rename(before.with_name("events.out.tfevents.0"))
    # The newest checkpoint was that of step 10.
    resumed = Events(folder, first_step=10)
    resumed.writer.add_scalar("validation/loss", 15, 15)
    resumed.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation/loss")
    assert [event.step for event in shown] == [5, 10, 15]
