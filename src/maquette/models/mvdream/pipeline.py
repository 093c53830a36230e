"""A sentence or a picture in, four pictures of the object from its four sides out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.cameras import camera_conditions
from maquette.models.mvdream.encoders import LatentCodec, PictureEncoder, TextEncoder, to_planes
from maquette.models.mvdream.graphs import GraphedCall
from maquette.models.mvdream.network import MultiViewUNet
from maquette.models.mvdream.params import MVDreamParams
from maquette.models.mvdream.sampling import Sampler, composed, guided, sample_latents
from maquette.models.mvdream.subjects import Subjects

_EARLY = 0.7  # share of the timesteps from which on noise is strong: what kind of thing it is, is decided there


@dataclass(frozen=True)
class Parts:
    """The networks of a pipeline.

    Attributes:
        unet: predicts the noise.
        codec: pictures to latents and back.
        text: sentences to context tokens.
        picture: pictures to tokens; None if the model takes no picture.
        subjects: guesses what a sentence is about; None for models that know enough words.
    """

    unet: MultiViewUNet
    codec: LatentCodec
    text: TextEncoder
    picture: PictureEncoder | None = None
    subjects: Subjects | None = None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All of them."""
        picture = () if self.picture is None else (self.picture.network,)
        return (self.unet, self.codec.network, self.text.network, *picture)


@dataclass(frozen=True)
class Conditions:
    """What the U-Net is told about one object; two rows (without, with condition) under guidance, otherwise one.

    A third row tells the subject of a sentence alone.

    Attributes:
        text: `[R, T, D]`.
        cameras: `[R, F, 16]`.
        picture: adapter tokens `[R, P, D]`, or None.
        picture_latents: `[R, C, h, w]`, or None.
        doubt: with three rows, how little the sentence says to the model, 0..1.
    """

    text: Tensor
    cameras: Tensor
    picture: Tensor | None = None
    picture_latents: Tensor | None = None
    doubt: float = 0.0


class MultiViewPipeline:
    """Generates the four sides of an object.

    Attributes:
        params: what it is made of.
        parts: its networks.
        device: where it computes.
    """

    def __init__(
        self,
        params: MVDreamParams,
        parts: Parts,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: bool = False,
        attention_slicing: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        """Puts the networks in place.

        Args:
            params: what the parts were built from.
            parts: networks, in evaluation mode from now on.
            device: where to compute.
            dtype: of the weights; None is float32 on the CPU and float16 elsewhere. Sampling is always in float32.
            offload: keeps each network in the CPU's memory while another one computes.
            attention_slicing: computes attention in slices; slower, needs less memory.
            cuda_graphs: records the U-Net once on the GPU and replays it; the first object takes longer, the others
                are faster. Not together with `offload`.
        """
        self.params, self.parts = params, parts
        self._graphs: dict[int, GraphedCall] | None = None
        if cuda_graphs and torch.device(device).type == "cuda" and not offload:
            self._graphs = {}
        self.device = torch.device(device)
        self._offload = offload and self.device.type != "cpu"
        self._dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        for network in parts.networks:
            network.eval().requires_grad_(False)
            # Not network.to(): diffusers' own warns about conversions of dtype that are meant.
            nn.Module.to(network, device="cpu" if self._offload else self.device, dtype=self._dtype)
            for parameter in network.parameters():
                if parameter.ndim == 4:  # convolutions are faster in this order on CPUs and GPUs
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        parts.unet.slice_attention(attention_slicing)

    def __call__(
        self,
        prompt: str = "",
        picture: Tensor | None = None,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        num_samples: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        sampler: Sampler = "ddim",
        eta: float = 0.0,
        elevation_deg: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Pictures `[num_samples, 4, 3, S, S]` in 0..1, float32, front first, then in growing azimuth.

        Models whose auto-encoder knows alpha give `[num_samples, 4, 4, S, S]` with straight alpha.

        Args:
            prompt: what to show; may be empty when there is a picture.
            picture: the object's front, square, `[3, H, W]` on white or `[4, H, W]` with straight alpha, 0..1; None if
                the model takes none, or can do without.
            negative_prompt: what not to show.
            seed: sample i is made from `seed + i`; the same seed gives the same bytes on the CPU.
            num_samples: objects to make; they are made one after another.
            steps, guidance, temperature: None takes the model's defaults. Guidance 1 leaves out the unconditional half.
                The noise that sampling starts from is `temperature` times as strong as in training, 0..1: towards 0 the
                views become simpler, likelier and more alike from seed to seed (as in Kingma and Dhariwal, 2018).
            sampler: "ddim" or "dpm++".
            eta: share of fresh noise in each step of ddim.
            elevation_deg: of the four cameras.
            progress: called after each step with the number of steps done and their total.

        Raises:
            InvalidInputError: a value is out of range, or the picture is missing, not square or given without need.
        """
        steps = self.params.default_steps if steps is None else steps
        guidance = self.params.guidance_for(picture is not None) if guidance is None else guidance
        temperature = self.params.temperature_for(picture is not None) if temperature is None else temperature
        if num_samples < 1:
            raise InvalidInputError(f"num_samples must be at least 1, got {num_samples}")
        if not guidance >= 1.0:
            raise InvalidInputError(f"guidance must be at least 1, got {guidance}")
        if not 0.0 <= temperature <= 1.0:
            raise InvalidInputError(f"temperature must lie in 0..1, got {temperature}")
        self._check_inputs(prompt, picture)
        samples = []
        for index in range(num_samples):
            generator = torch.Generator().manual_seed(seed + index)
            report = None if progress is None else _shifted(progress, index, num_samples)
            with torch.inference_mode():
                conditions = self.conditions(
                    prompt,
                    picture,
                    negative_prompt=negative_prompt if guidance > 1 else None,
                    elevation_deg=elevation_deg,
                    generator=generator,
                )
                latents = self.sample(
                    conditions,
                    steps,
                    guidance,
                    temperature=temperature,
                    sampler=sampler,
                    eta=eta,
                    generator=generator,
                    progress=report,
                )
                samples.append(self.decode(latents))
        return torch.cat(samples)  # a usual tensor, not an inference one

    def conditions(
        self,
        prompt: str,
        picture: Tensor | None,
        *,
        negative_prompt: str | None,
        elevation_deg: float,
        generator: torch.Generator,
    ) -> Conditions:
        """Encodes what the U-Net is told; with a negative prompt (even an empty one) an unconditional row comes first,
        and a model that guesses subjects appends that of a sentence alone.

        Args:
            prompt, picture, elevation_deg: see `__call__`.
            negative_prompt: None leaves out the unconditional row.
            generator: of the CPU; draws the latents of the picture.
        """
        texts = [prompt] if negative_prompt is None else [negative_prompt, prompt]
        doubt = 0.0
        if self.parts.subjects is not None and negative_prompt is not None and picture is None:
            doubt = self.parts.subjects.doubt(prompt)
            texts.append(self.parts.subjects.guess(prompt))
        with self._in_place(self.parts.text.network):
            text = self.parts.text(texts)
        cameras = camera_conditions(self.params.num_views, elevation_deg, with_picture=self.params.takes_picture)
        cameras = cameras.to(self.device, self._dtype).expand(len(texts), -1, -1)
        if self.parts.picture is None:
            return Conditions(text, cameras)
        if picture is None:
            adapted, latents = self._without_picture(len(texts))
            return Conditions(text, cameras, adapted, latents, doubt)
        with self._in_place(self.parts.picture.network):
            tokens = self.parts.picture(to_planes(picture, 3)[None])
        with self._in_place(self.parts.codec.network):
            latents = self.parts.codec.encode(picture[None], self.params.image_size, generator)
        missing = len(texts) - 1
        tokens = torch.cat([tokens.new_zeros(missing, *tokens.shape[1:]), tokens])
        latents = torch.cat([latents.new_zeros(missing, *latents.shape[1:]), latents])
        with self._in_place(self.parts.unet.image_embed):
            adapted = self.parts.unet.image_embed(tokens)
        return Conditions(text, cameras, adapted, latents)

    def _without_picture(self, rows: int) -> tuple[Tensor, Tensor]:
        """What the U-Net gets in place of adapter tokens and latents of a picture: those of zeros, and zeros."""
        params = self.params
        encoder, channels = params.picture_encoder, params.unet.in_channels
        assert encoder is not None
        tokens = torch.zeros(rows, encoder.num_tokens, encoder.channels, device=self.device, dtype=self._dtype)
        with self._in_place(self.parts.unet.image_embed):
            adapted: Tensor = self.parts.unet.image_embed(tokens)
        return adapted, tokens.new_zeros(rows, channels, params.latent_size, params.latent_size)

    def sample(
        self,
        conditions: Conditions,
        steps: int,
        guidance: float,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        sampler: Sampler = "ddim",
        eta: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Latents of all frames of one object, `[1, F, C, h, w]`; arguments as in `__call__`."""
        params, rows = self.params, len(conditions.text)
        size = params.latent_size
        start = torch.randn(1, params.num_frames, params.unet.in_channels, size, size, generator=generator)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            given = (latents.expand(rows, -1, -1, -1, -1), timestep.expand(rows), conditions.cameras, conditions.text)
            prediction = self._predict((*given, conditions.picture, conditions.picture_latents), rows).float()
            if rows == 3:
                early, late = params.subject_shares or (0.0, 0.0)
                share = conditions.doubt * torch.where(timestep >= _EARLY * params.noise.num_steps, early, late)
                return composed(prediction[:1], prediction[1:2], prediction[2:], guidance, share)
            return prediction if rows == 1 else guided(prediction[:1], prediction[1:], guidance)

        with self._in_place(self.parts.unet):
            return sample_latents(
                predict,
                (start * temperature).to(self.device),
                params.noise,
                steps,
                sampler=sampler,
                eta=eta,
                generator=generator,
                progress=progress,
            )

    def _predict(self, inputs: tuple[Tensor | None, ...], rows: int) -> Tensor:
        """The U-Net's output, replayed if there are graphs."""
        present = tuple(value for value in inputs if value is not None)
        if self._graphs is None:
            result: Tensor = self.parts.unet(*present)
            return result
        if rows not in self._graphs:
            self._graphs[rows] = GraphedCall(self.parts.unet, present)
        return self._graphs[rows](*present)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `[B, V, 3|4, S, S]` of latents `[B, F, C, h, w]`, front first."""
        views = latents[:, : self.params.num_views]
        with self._in_place(self.parts.codec.network):
            images = self.parts.codec.decode(views.flatten(0, 1))
        images = images.reshape(*views.shape[:2], *images.shape[1:])
        return images.roll(-self.params.front_view, dims=1)

    def _check_inputs(self, prompt: str, picture: Tensor | None) -> None:
        name = self.params.name
        if picture is None and self.params.takes_picture and not self.params.picture_optional:
            raise InvalidInputError(f"{name} needs a picture; for a sentence alone choose a model such as mvdream")
        if picture is not None and not self.params.takes_picture:
            raise InvalidInputError(f"{name} takes a sentence only; for a picture choose a model such as imagedream")
        if picture is None and not prompt.strip():
            raise InvalidInputError(f"{name} needs a sentence that says what to show, the prompt is empty")
        if picture is None:
            return
        shape = list(picture.shape)
        if picture.ndim != 3 or shape[0] not in (3, 4) or shape[1] != shape[2] or not picture.is_floating_point():
            raise InvalidInputError(
                f"the picture must be square, [3|4, S, S] in 0..1, got {picture.dtype} {shape}; "
                "maquette.picture.prepare_picture makes it so"
            )

    @contextmanager
    def _in_place(self, network: nn.Module) -> Iterator[None]:
        """Has a network on the computing device while it is used."""
        if not self._offload:
            yield
            return
        nn.Module.to(network, device=self.device)
        try:
            yield
        finally:
            nn.Module.to(network, device="cpu")


def _shifted(progress: Callable[[int, int], None], index: int, count: int) -> Callable[[int, int], None]:
    """Progress of one of several samples as progress of the whole."""
    return lambda done, total: progress(index * total + done, count * total)
