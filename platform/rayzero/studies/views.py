"""Views of a radiograph, by the names that DICOM headers and corpora give them."""

from __future__ import annotations

from rayzero.studies.study import View

_VIEWS: dict[str, View] = {
    **dict.fromkeys(("AP", "PA", "ANTERO POSTERIOR", "POSTERO ANTERIOR"), "frontal"),
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LARGE LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "lateral"),
    **dict.fromkeys(
        ("LPO", "RPO", "LAO", "RAO", "AP AXIAL", "PA AXIAL", "XTABLE LATERAL", "AP LLD", "PA LLD", "AP RLD", "PA RLD",
         "LLD", "RLD", "L5 S1", "SWIMMERS", "OBLIQUE", "COSTAL"),
        "other",
    ),
}  # fmt: skip


def view_named(text: str) -> View | None:
    """The view that a ViewPosition, or the meaning of a view code, stands for; None when it is not a known one."""
    return _VIEWS.get(" ".join(text.upper().replace("-", " ").replace("_", " ").split()))
