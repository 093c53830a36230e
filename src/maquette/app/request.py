"""What a client asks for: one job of making an object."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from maquette.choices import CUT_OUTS, FORMATS, CutOutBy
from maquette.errors import InvalidInputError
from maquette.registry import MODELS, get_entry

MAX_STEPS = 200
MAX_GUIDANCE = 50.0


@dataclass(frozen=True)
class GenerateRequest:
    """One object to make, of a picture, a sentence, both, or posed views.

    Attributes:
        picture: bytes of a PNG, JPEG or WebP file.
        views: bytes of a .zip with `transforms.json` and the pictures it names (four RGBA views); alone.
        prompt, negative_prompt: what to show, and what not; no control characters but spaces and line ends.
        model: registry name; models of one picture (gamba-mini) take a picture and no prompt.
        formats: of `maquette.pipelines.FORMATS`.
        seed: 0..2**32 - 1.
        steps: of the sampler, 1..200; None takes the generator's own.
        guidance: 1..50; None takes the generator's own.
        cut_out_by: how to find the object, see `maquette.picture.prepare`; None lets the program choose.
        fit_mesh: fit the mesh to views of the Gaussians: better, and half a minute longer on a CPU.

    Raises:
        InvalidInputError: a value is out of range, or these inputs do not go together.
    """

    picture: bytes | None = None
    views: bytes | None = None
    prompt: str = ""
    negative_prompt: str = ""
    model: str = "lgm-mini"
    formats: tuple[str, ...] = FORMATS
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    cut_out_by: CutOutBy | None = None
    fit_mesh: bool = False

    def __post_init__(self) -> None:
        get_entry(self.model)
        self._check_inputs()
        for text in (self.prompt, self.negative_prompt):
            if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\r\n" for letter in text):
                raise InvalidInputError("the prompt has control characters or broken Unicode in it: write plain text")
        unknown = [fmt for fmt in self.formats if fmt not in FORMATS]
        if unknown or not self.formats:
            raise InvalidInputError(f"formats must be some of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
        if not 0 <= self.seed < 2**32:
            raise InvalidInputError(f"seed must lie in 0..{2**32 - 1}, got {self.seed}")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise InvalidInputError(f"steps must lie in 1..{MAX_STEPS}, got {self.steps}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and 1 <= self.guidance <= MAX_GUIDANCE):
            raise InvalidInputError(f"guidance must lie in 1..{MAX_GUIDANCE:g}, got {self.guidance:g}")
        if self.cut_out_by is not None and self.cut_out_by not in CUT_OUTS:
            raise InvalidInputError(f"cut_out_by must be one of {', '.join(CUT_OUTS)}, got {self.cut_out_by!r}")

    @property
    def takes_one_picture(self) -> bool:
        """Whether the model makes the object of one picture, without views in between."""
        return MODELS[self.model].params.num_input_views == 1

    def _check_inputs(self) -> None:
        given = self.picture is not None or bool(self.prompt.strip())
        if self.views is not None and given:
            raise InvalidInputError("views go alone: leave out the picture and the prompt, or the views")
        if self.views is None and not given:
            raise InvalidInputError("nothing to start from: give a picture, a prompt or a .zip of views")
        if not self.takes_one_picture:
            return
        if self.picture is None:
            raise InvalidInputError(f"{self.model} makes the object of one picture: give a picture, or choose lgm-mini")
        if self.prompt.strip():
            raise InvalidInputError(f"{self.model} goes by the picture alone: leave out the prompt, or choose lgm-mini")
