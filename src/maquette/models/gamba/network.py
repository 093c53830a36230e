"""The Gamba network: one picture becomes a sequence of Gaussian tokens that state-space blocks mix in one direction.

Source: Gamba (Shen et al., 2024, arXiv 2403.18795), section 3, in the variant of the released code. Module names are
those of the official state dict, but for the encoder (see `maquette.models.gamba.official`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.gamba.activation import SCALE_FACTOR, RawGaussians, activate_gaussians
from maquette.models.gamba.mamba import MambaMixer
from maquette.models.gamba.params import NUM_SCANS, GambaParams
from maquette.models.gamba.scans import scan_cells
from maquette.nn.vit import VisionTransformer

_OFFICIAL_SCALE_BIAS = -1.8
_GENTLE = 0.1
"""Factor on the initial weights of the heads that should start near their biases."""


class FloatLayerNorm(nn.LayerNorm):
    """Layer norm of float32 values, whatever the precision of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `[..., C]`, float32 in and out."""
        return F.layer_norm(input, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class FloatRMSNorm(nn.Module):
    """Division by the root mean square over the channels, in float32."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalises `[..., C]`; the result is float32."""
        return F.rms_norm(tokens.float(), self.weight.shape, self.weight.float(), self.eps)


class MambaBlock(nn.Module):
    """Norm and mixer."""

    def __init__(self, params: GambaParams) -> None:
        super().__init__()
        self.mixer = MambaMixer(params.width, params.state_size, params.num_layers)
        self.norm = FloatLayerNorm(params.width)

    def forward(self, residual: Tensor) -> Tensor:
        """Mixes `[B, L, C]`, float32."""
        mixed: Tensor = self.mixer(self.norm(residual))
        return mixed


class GambaLayer(nn.Module):
    """Puts the condition before the Gaussian tokens and mixes the sequence.

    The tokens see the condition, which comes first; the condition is given anew to every layer.

    Args:
        params: sizes.
        drop_path: rate of stochastic depth, 0..1.
        turn: whether to read the tokens from last to first.
    """

    def __init__(self, params: GambaParams, drop_path: float, turn: bool = False) -> None:
        super().__init__()
        self.num_parts, self.drop_path, self.turn = params.num_parts, drop_path, turn
        self.cond_affine = nn.Linear(params.encoder.width, params.width)
        self.mamba_block = MambaBlock(params)

    def forward(self, hidden: Tensor, residual: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes Gaussian tokens, of which `hidden + residual` counts.

        Args:
            hidden: output of the layer before, `[B, N, C]`.
            residual: sum of those before it, float32, `[B, N, C]`.
            condition: tokens of the image encoder, `[B, M, E]`.

        Returns:
            `hidden` and `residual` of the whole sequence, `[B, parts * M + N, C]`: see `tokens_of`.
        """
        given = self.cond_affine(condition).to(hidden.dtype)
        if self.training and self.drop_path > 0.0:
            kept = _kept(hidden, self.drop_path)
            given, hidden = given * kept, hidden * kept
        tokens = hidden + residual
        total = self._joined(given.to(tokens.dtype), tokens.flip(1) if self.turn else tokens)
        return self.mamba_block(total), total

    def _joined(self, condition: Tensor, tokens: Tensor) -> Tensor:
        parts = tokens.reshape(len(tokens), self.num_parts, -1, tokens.shape[2])  # [B, parts, N / parts, C]
        repeated = condition[:, None].expand(-1, self.num_parts, -1, -1)
        return torch.cat([repeated, parts], dim=2).flatten(1, 2)


def tokens_of(sequence: Tensor, num_condition: int, num_parts: int) -> Tensor:
    """The Gaussian tokens `[B, N, C]` of a sequence of parts that start with the condition."""
    parts = sequence.reshape(len(sequence), num_parts, -1, sequence.shape[2])
    return parts[:, :, num_condition:].flatten(1, 2)


def _kept(values: Tensor, rate: float) -> Tensor:
    """Stochastic depth: factors `[B, 1, 1]` for `[B, ...]`, zero for samples at this rate and larger for the others."""
    keep = torch.rand(len(values), 1, 1, device=values.device) >= rate
    return (keep / (1 - rate)).to(values.dtype)


class GambaFormer(nn.Module):
    """The learned positions, the layers, and the final norm: tokens `[B, N, C]` to features `[B, N, C]`, float32."""

    def __init__(self, params: GambaParams) -> None:
        super().__init__()
        self.params = params
        rows = NUM_SCANS if params.factorized_positions else params.num_tokens
        self.pos_embed = nn.Parameter(torch.randn(rows, params.width) / math.sqrt(params.width))
        # The official rates: the first two layers never drop, the last one falls short of the full rate by one step.
        step = params.drop_path / max(params.num_layers - 1, 1)
        turns = [params.alternate_direction and i > 0 for i in range(params.num_layers)]
        layers = [GambaLayer(params, max(i - 1, 0) * step, turn) for i, turn in enumerate(turns)]
        self.layers = nn.ModuleList(layers)
        self.norm_f = FloatRMSNorm(params.width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Mixes the tokens `[B, N, C]` under a condition `[B, M, E]`."""
        repeats = tokens.shape[1] // len(self.pos_embed)
        hidden = tokens + self.pos_embed.repeat_interleave(repeats, dim=0)
        residual = torch.zeros_like(hidden, dtype=torch.float32)
        for layer in self.layers:
            sequences = layer(hidden, residual, condition)
            hidden, residual = (
                tokens_of(sequence, condition.shape[1], self.params.num_parts) for sequence in sequences
            )
        features: Tensor = self.norm_f(hidden + residual)
        backwards = self.params.alternate_direction and self.params.num_layers % 2 == 0
        return features.flip(1) if backwards else features


class DecoderMlp(nn.Module):
    """Two linear layers, each followed by SiLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())

    def forward(self, features: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., hidden]`."""
        result: Tensor = self.layers(features)
        return result


class FloatLinear(nn.Linear):
    """A linear layer in float32, whatever the precision of its weights: half precision is too coarse for positions."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[..., C_in]` to `[..., C_out]`, float32."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


class GaussianHeads(nn.Module):
    """One linear head per property of the Gaussians; the start is faint Gaussians of one size and grey colour."""

    def __init__(self, params: GambaParams) -> None:
        super().__init__()
        self.cells = params.cells_per_token**2
        width, cells = params.decoder_width, self.cells
        self.xyz = FloatLinear(width, params.position_channels * cells)
        self.opacity = FloatLinear(width, cells)
        self.scale = FloatLinear(width, 3 * cells)
        self.rgb = FloatLinear(width, 3 * cells)
        self.rotation = FloatLinear(width, 4 * cells) if params.predict_rotation else None
        self.blend = FloatLinear(width, cells) if params.color_mode == "blend" else None
        self._initialize(params)

    @torch.no_grad()
    def _initialize(self, params: GambaParams) -> None:
        opacity, scale = params.initial_opacity, params.initial_scale
        nn.init.xavier_uniform_(self.xyz.weight)
        nn.init.zeros_(self.xyz.bias)
        if params.position_mode == "ray":
            self.xyz.weight.mul_(_GENTLE)
        nn.init.constant_(self.opacity.bias, math.log(opacity / (1 - opacity)))
        nn.init.constant_(
            self.scale.bias, _OFFICIAL_SCALE_BIAS if scale is None else math.log(math.expm1(scale / SCALE_FACTOR))
        )
        nn.init.zeros_(self.rgb.weight)
        nn.init.zeros_(self.rgb.bias)
        if self.rotation is not None:
            self.rotation.weight.mul_(_GENTLE)
            self.rotation.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(self.cells))
        if self.blend is not None:
            nn.init.constant_(self.blend.bias, -2.0)

    def forward(self, features: Tensor) -> RawGaussians:
        """Maps features `[B, tokens, C]` to properties of `tokens * cells` Gaussians."""
        return RawGaussians(
            xyz=self._per_gaussian(self.xyz, features),
            opacity=self._per_gaussian(self.opacity, features),
            scale=self._per_gaussian(self.scale, features),
            rgb=self._per_gaussian(self.rgb, features),
            rotation=None if self.rotation is None else self._per_gaussian(self.rotation, features),
            blend=None if self.blend is None else self._per_gaussian(self.blend, features),
        )

    def _per_gaussian(self, head: FloatLinear, features: Tensor) -> Tensor:
        values: Tensor = head(features)
        return values.reshape(len(values), values.shape[1] * self.cells, -1)


class GaussianDecoder(nn.Module):
    """Features of the tokens to the outputs behind the Gaussians."""

    def __init__(self, params: GambaParams) -> None:
        super().__init__()
        self.mlp_net = DecoderMlp(params.width, params.decoder_width)
        self.gs_layer = GaussianHeads(params)

    def forward(self, features: Tensor) -> RawGaussians:
        """Maps features `[B, tokens, C]` to `[B, tokens * cells, ...]`."""
        raw: RawGaussians = self.gs_layer(self.mlp_net(features))
        return raw


class Gamba(nn.Module):
    """One picture to Gaussians.

    Weights may be float32, bfloat16 or float16; the scans, the sum of the layers and the activations of the Gaussians
    always run in float32.
    """

    def __init__(self, params: GambaParams) -> None:
        super().__init__()
        self.params = params
        self.image_encoder = VisionTransformer(params.encoder)
        if params.freeze_encoder:
            self.image_encoder.requires_grad_(False)
        patch, width, grid = params.patch_size, params.width, params.grid_size
        self.stem_layer = nn.Conv2d(params.input_channels, width, patch, stride=patch)
        if params.factorized_positions:
            self.grid_embed = nn.Parameter(torch.randn(1, width, grid, grid) / math.sqrt(width))
        if params.local_features:
            self.local_affine = nn.Linear(params.encoder.width, width)
        self.transformer = GambaFormer(params)
        self.decoder = GaussianDecoder(params)

    def tokens(self, images_and_rays: Tensor, condition: Tensor) -> Tensor:
        """The Gaussian tokens before their positions are added, in four scans, `[B, num_tokens, C]`."""
        cells: Tensor = self.stem_layer(images_and_rays.to(self.stem_layer.weight.dtype))
        if self.params.local_features:
            patches = self.local_affine(condition[:, 1:])
            side = math.isqrt(patches.shape[1])
            local = patches.mT.reshape(*patches.mT.shape[:2], side, side)
            cells = cells + F.interpolate(local, size=cells.shape[2:], mode="bilinear", align_corners=False)
        if self.params.factorized_positions:
            cells = cells + self._grid_positions(cells.shape[2])
        return scan_cells(cells)

    def _grid_positions(self, size: int) -> Tensor:
        """The learned positions of the cells, interpolated for pictures of another size, `[1, C, size, size]`."""
        if size == self.grid_embed.shape[2]:
            return self.grid_embed
        return F.interpolate(self.grid_embed.float(), size=(size, size), mode="bilinear", antialias=True)

    def raw_gaussians(self, images_and_rays: Tensor, pictures: Tensor) -> RawGaussians:
        """Values before activation; the Gaussians are ordered by scan, cell of the scan, row, column in the cell.

        Args:
            images_and_rays: `[B, 9 or 10, S, S]`, see `maquette.models.gamba.inputs.network_inputs`.
            pictures: RGB 0..1 for the image encoder, `[B, 3, encoder_size, encoder_size]`.

        Raises:
            InvalidInputError: not these shapes.
        """
        params, size = self.params, self.params.encoder_size
        expected = [
            (params.input_channels, params.input_size, params.input_size),
            (3, size, size),
        ]
        shapes = [tuple(images_and_rays.shape), tuple(pictures.shape)]
        if [shape[1:] for shape in shapes] != expected or shapes[0][0] != shapes[1][0]:
            wanted = " and ".join(f"[B, {', '.join(map(str, shape))}]" for shape in expected)
            raise InvalidInputError(
                f"{params.name} needs inputs of shape {wanted}, got {list(shapes[0])} and {list(shapes[1])}"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not params.freeze_encoder):
            condition = self.image_encoder(pictures)
        tokens = self.tokens(images_and_rays, condition)
        features = self.transformer(tokens, condition).to(self.stem_layer.weight.dtype)
        raw: RawGaussians = self.decoder(features)
        return raw

    def forward(self, images_and_rays: Tensor, pictures: Tensor) -> Gaussians:
        """Gaussians `[B, N]` of the objects in the pictures; arguments as of `raw_gaussians`."""
        return activate_gaussians(self.raw_gaussians(images_and_rays, pictures), images_and_rays, self.params)
