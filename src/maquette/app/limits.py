"""What the app takes from strangers, and how much of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from maquette.app.request import GenerateRequest
from maquette.errors import InvalidInputError, WeightsError
from maquette.registry import get_entry
from maquette.weights import find_weights


class TooLargeError(InvalidInputError):
    """An upload has more bytes than are taken."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the queue and of uploads.

    Attributes:
        max_upload_bytes: of a picture or a .zip of views.
        max_pixels: of one picture, read from its header before anything is decoded.
        max_unpacked_bytes: of all files in a .zip of views together.
        max_prompt_chars: of each of the two prompts.
        queue_capacity: jobs that wait; one more runs.
        timeout_s: seconds that a job may run.
        keep_s: seconds for which the results of a job are kept.

    Raises:
        InvalidInputError: a value is not positive.
    """

    max_upload_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    max_unpacked_bytes: int = 100_000_000
    max_prompt_chars: int = 1000
    queue_capacity: int = 16
    timeout_s: float = 900.0
    keep_s: float = 3600.0

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if not value > 0:
                raise InvalidInputError(f"{setting.name} must be more than 0, got {value}")

    def check(self, request: GenerateRequest) -> None:
        """Refuses a request that is too large or cannot be done, reading headers only.

        Raises:
            TooLargeError: too many bytes.
            InvalidInputError: a prompt is too long.
            FileFormatError: not a picture, too many pixels, or not a .zip of views.
            WeightsError: the weights of the model are not on this machine.
        """
        from maquette.app.views_zip import check_views_zip  # here, so that a server is up before torch is
        from maquette.io.images import decode_image_info

        for what, data in (("picture", request.picture), ("views", request.views)):
            if data is not None and len(data) > self.max_upload_bytes:
                raise TooLargeError(
                    f"the {what} has {len(data):,} bytes, at most {self.max_upload_bytes:,} are taken; make it smaller"
                )
        longest = max(len(request.prompt), len(request.negative_prompt))
        if longest > self.max_prompt_chars:
            raise InvalidInputError(f"a prompt may have {self.max_prompt_chars} characters, this one has {longest:,}")
        if request.picture is not None:
            decode_image_info(request.picture, "the picture", max_pixels=self.max_pixels)
        if request.views is not None:
            check_views_zip(request.views, max_bytes=self.max_unpacked_bytes)
        entry = get_entry(request.model)
        if find_weights(entry.name) is None:
            raise WeightsError(f"the weights of {entry.name} are not on this machine: {entry.how_to_get}")
