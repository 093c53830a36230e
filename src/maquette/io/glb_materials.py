"""Materials and textures of a GLB document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import UnsupportedError
from maquette.io import DEFAULT_MAX_PIXELS
from maquette.io.color_space import linear_to_srgb
from maquette.io.glb_container import GlbDocument
from maquette.io.images import decode_image
from maquette.mesh import Material


class MaterialReader:
    """Reads the materials that primitives use, each once; textures share their tensors.

    Args:
        document: the file.
    """

    def __init__(self, document: GlbDocument) -> None:
        self._document = document
        self._positions: dict[int | None, int] = {}
        self._materials: list[Material] = []
        self._sources: list[dict[str, Any]] = []
        self._images: dict[int, Tensor] = {}
        self._pixels_left = DEFAULT_MAX_PIXELS

    def index_of(self, reference: Any) -> int:
        """Position in `materials()` of a primitive's material (None: white)."""
        key = None if reference is None else self._document.index(reference, "primitive.material")
        if key not in self._positions:
            source = {} if key is None else self._document.item("materials", key)
            self._positions[key] = len(self._materials)
            self._sources.append(source)
            self._materials.append(Material() if key is None else self._read(source))
        return self._positions[key]

    def materials(self) -> tuple[Material, ...]:
        """All materials read so far."""
        return tuple(self._materials)

    def is_opaque(self, position: int) -> bool:
        """True when alpha has no meaning (the glTF default)."""
        return bool(self._sources[position].get("alphaMode", "OPAQUE") == "OPAQUE")

    def uv_set(self, position: int) -> int:
        """Which TEXCOORD_n the base colour texture uses."""
        info, transform = self._texture_info(position)
        return self._document.index(transform.get("texCoord", info.get("texCoord", 0)), "texCoord")

    def transformed_uvs(self, position: int, uvs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Texture coordinates after KHR_texture_transform, `[N, 2]`."""
        _, transform = self._texture_info(position)
        if not transform:
            return uvs
        document = self._document
        offset = document.numbers(transform.get("offset", [0, 0]), 2, "offset")
        scale = document.numbers(transform.get("scale", [1, 1]), 2, "scale")
        angle = document.number(transform.get("rotation", 0), "rotation")
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = uvs[:, 0] * scale[0], uvs[:, 1] * scale[1]
        return np.stack([cos * u + sin * v + offset[0], -sin * u + cos * v + offset[1]], axis=1).astype(np.float32)

    def _surface(self, source: dict[str, Any]) -> dict[str, Any]:
        return self._document.obj(source.get("pbrMetallicRoughness", {}), "pbrMetallicRoughness")

    def _texture_info(self, position: int) -> tuple[dict[str, Any], dict[str, Any]]:
        document = self._document
        info = document.obj(self._surface(self._sources[position]).get("baseColorTexture", {}), "baseColorTexture")
        extensions = document.obj(info.get("extensions", {}), "extensions")
        return info, document.obj(extensions.get("KHR_texture_transform", {}), "KHR_texture_transform")

    def _read(self, source: dict[str, Any]) -> Material:
        document, surface = self._document, self._surface(source)
        factor = document.numbers(surface.get("baseColorFactor", [1, 1, 1, 1]), 4, "baseColorFactor")
        red, green, blue = (float(v) for v in linear_to_srgb(np.array(factor[:3])))
        alpha = min(max(factor[3], 0.0), 1.0)
        texture = self._texture(surface.get("baseColorTexture"))
        mode = source.get("alphaMode", "OPAQUE")
        if mode == "OPAQUE" and texture is not None and bool((texture[..., 3] < 1).any()):
            texture = torch.cat([texture[..., :3], torch.ones_like(texture[..., 3:])], dim=-1)
        if mode == "MASK":
            cutoff = document.number(source.get("alphaCutoff", 0.5), "alphaCutoff")
            if texture is not None:
                texture = torch.cat([texture[..., :3], (texture[..., 3:] * alpha >= cutoff).float()], dim=-1)
                alpha = 1.0
            else:
                alpha = float(alpha >= cutoff)
        elif mode == "OPAQUE":
            alpha = 1.0
        metallic, roughness = 0.0, 1.0
        if "metallicRoughnessTexture" not in surface:
            metallic = document.number(surface.get("metallicFactor", 1), "metallicFactor")
            roughness = document.number(surface.get("roughnessFactor", 1), "roughnessFactor")
        return Material((red, green, blue, alpha), texture, min(max(metallic, 0.0), 1.0), min(max(roughness, 0.0), 1.0))

    def _texture(self, info: Any) -> Tensor | None:
        """Base colour texture as `[H, W, 4]`."""
        if info is None:
            return None
        document = self._document
        texture = document.item("textures", document.obj(info, "baseColorTexture").get("index"))
        extensions = document.obj(texture.get("extensions", {}), "extensions")
        webp = document.obj(extensions.get("EXT_texture_webp", {}), "EXT_texture_webp")
        source = webp.get("source", texture.get("source"))
        if source is None:
            if "KHR_texture_basisu" in extensions:
                raise UnsupportedError(f"{document.name}: textures are KTX2 (Basis); export them as PNG or JPEG")
            return None
        index = document.index(source, "texture.source")
        if index not in self._images:
            name = f"{document.name}: images[{index}]"
            image = decode_image(document.image_bytes(index), name, max_pixels=self._pixels_left)
            self._pixels_left -= image[0].numel()
            self._images[index] = image.permute(1, 2, 0).contiguous()
        return self._images[index]
