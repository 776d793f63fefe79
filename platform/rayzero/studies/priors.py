"""Prior studies: found by id wherever they lie in a lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rayzero.studies.lake import Lake, RowGroup, each_group, read_parquet_group, read_row_group
from rayzero.studies.study import Study

PriorGroups = Mapping[str, RowGroup]
"""The row group that holds each prior study, by the study's id."""


def link_priors(lake: Lake, groups: Iterable[RowGroup]) -> PriorGroups:
    """Where the priors of the studies in ``groups`` are, in any split; reads ids alone.

    A prior that the lake does not hold has no entry.
    """
    asked = each_group(groups, lambda group: _column(group, "prior_study_id"))
    linked = {prior for priors in asked for prior in priors if prior is not None}
    if not linked:
        return {}
    everywhere = lake.row_groups()
    held = each_group(everywhere, lambda group: _column(group, "study_id"))
    return {
        study_id: group
        for group, studies in zip(everywhere, held, strict=True)
        for study_id in studies
        if study_id in linked
    }


def _column(group: RowGroup, name: str) -> list[Any]:
    values: list[Any] = read_parquet_group(group, [name]).column(name).to_pylist()
    return values


class PriorFinder:
    """Looks priors up by id, holding one row group beside ``near``, the studies at hand.

    Most priors are near: ingest keeps a patient's studies together.
    """

    def __init__(self, groups: PriorGroups, near: Iterable[Study] = ()) -> None:
        self._groups = groups
        self._near = {study.study_id: study for study in near}
        self._held: tuple[RowGroup | None, dict[str, Study]] = (None, {})

    def __call__(self, study_id: str) -> Study | None:
        """The study with its images, or None where the lake has no such study."""
        if study_id in self._near:
            return self._near[study_id]
        group = self._groups.get(study_id)
        if group is None:
            return None
        if self._held[0] != group:
            found = {study.study_id: study for study in read_row_group(group, columns=["images"])}
            self._held = (group, found)
        return self._held[1].get(study_id)
