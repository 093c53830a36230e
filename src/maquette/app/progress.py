"""Stages of the pipelines in words for people, and how far a job is."""

from __future__ import annotations

from dataclasses import dataclass, field

from maquette.app.jobs import Report
from maquette.app.request import GenerateRequest

_STAGES: dict[str, tuple[str, float]] = {
    "read picture": ("reading the picture", 0.1),
    "prepare": ("preparing the pictures", 0.2),
    "make views": ("making four views", 8.0),
    "write views": ("keeping the views", 0.2),
    "read": ("reading the views", 0.1),
    "reconstruct": ("making the Gaussians", 4.0),
    "write .ply": ("writing the Gaussians (.ply)", 0.1),
    "write .splat": ("writing the Gaussians (.splat)", 0.1),
    "write .glb": ("making the mesh (.glb)", 10.0),
    "write .mp4": ("rendering the turntable (.mp4)", 4.0),
    "write .png": ("drawing the contact sheet (.png)", 0.6),
}
"""Stage to what people read and about how long it takes, in seconds on two cores."""

_LOAD = ("loading the models", 1.0)
_FIT_MESH_S = 30.0


@dataclass
class StageFractions:
    """A pipeline's `progress` that tells a job's report.

    Attributes:
        report: of the job.
        plan: the stages to come, in order, and their weights; one that never comes is skipped.
    """

    report: Report
    plan: list[tuple[str, float]]
    _at: int = field(default=0, init=False)

    def loading(self) -> None:
        """Models are being loaded, before the stages."""
        self.report(_LOAD[0], 0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports that `done` of `total` steps of a stage are finished."""
        names = [name for name, _ in self.plan]
        if stage in names[self._at :]:
            self._at = names.index(stage, self._at)
            before = _LOAD[1] + sum(weight for _, weight in self.plan[: self._at])
            share = before + self.plan[self._at][1] * min(done / max(total, 1), 1.0)
            fraction = share / (_LOAD[1] + sum(weight for _, weight in self.plan))
            if done >= total:
                self._at += 1
        else:
            fraction = 0.0  # a stage that was not foreseen; fractions never shrink
        self.report(_STAGES.get(stage, (stage, 0.0))[0], fraction)


def plan_of(request: GenerateRequest) -> list[tuple[str, float]]:
    """Stages that a request goes through, in order, with about how many seconds each takes."""
    names = []
    if request.views is None and not request.takes_one_picture:
        names += (
            ["prepare", "make views", "write views"] if request.picture is not None else ["make views", "write views"]
        )
    names += ["read", "prepare", "reconstruct", *(f"write .{fmt}" for fmt in request.formats)]
    weights = {name: _STAGES[name][1] for name in names}
    if request.fit_mesh and "write .glb" in weights:
        weights["write .glb"] += _FIT_MESH_S
    return [(name, weights[name]) for name in names]
