"""The pointing game's answer: boxes decide, a mask where there is none."""

from __future__ import annotations

import numpy as np

from rayzero.metrics.grounding import first_peak, pointing_hit


def test_boxes_decide_and_a_mask_where_there_are_none() -> None:
    values = np.zeros((4, 6))
    values[1, 5] = 1.0
    peak = first_peak(values)
    mask = values > 0
    assert peak == (5, 1)
    assert pointing_hit(peak, [(0.0, 0.0, 2.0, 2.0), (5.0, 1.0, 6.0, 2.0)], ~mask) is True
    assert pointing_hit(peak, [(0.0, 0.0, 2.0, 2.0)], mask) is False
    assert pointing_hit(peak, [], mask) is True
    assert pointing_hit(peak, [], ~mask) is False
    assert pointing_hit(peak, [], None) is None


def test_a_volume_is_hit_inside_its_mask() -> None:
    values = np.zeros((2, 3, 4))
    values[1, 2, 0] = 1.0
    assert first_peak(values) == (0, 2, 1)
    assert pointing_hit(first_peak(values), [], values > 0) is True
