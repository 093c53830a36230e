"""An independent judge of what a picture shows: a small classifier trained on true renders, never on generated views.

Residual network of four levels on pictures of 64 px on white; an object's category is read off the sum of the
log-probabilities of its views.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.data.dataset import INPUT, RenderedDataset
from maquette.errors import InvalidInputError, WeightsError
from maquette.models.mvdream.encoders import to_planes
from maquette.training.augment import augment
from maquette.training.config import AugmentConfig
from maquette.views import Views
from maquette.weights import load_strictly, read_weights, write_weights

PICTURE_SIZE = 64
_CHANNELS = (32, 64, 128, 256)
_GROUPS = 8
_MODEL = "view-classifier"


class ViewClassifier(nn.Module):
    """Categories of single pictures.

    Attributes:
        categories: their names, in the order of the outputs.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        super().__init__()
        self.categories = tuple(categories)
        layers: list[nn.Module] = [nn.Conv2d(3, _CHANNELS[0], 3, padding=1)]
        width = _CHANNELS[0]
        for channels in _CHANNELS:
            layers += [_Residual(width, channels), nn.AvgPool2d(2)]
            width = channels
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, len(self.categories))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[N, categories]` of pictures on white `[N, 3, H, W]` in 0..1; they are resized to 64 px."""
        small = pictures
        if pictures.shape[-1] != PICTURE_SIZE or pictures.shape[-2] != PICTURE_SIZE:
            small = F.interpolate(pictures, (PICTURE_SIZE,) * 2, mode="bilinear", antialias=True)
        logits: Tensor = self.head(self.dropout(self.features(4 * (1 - small)).mean(dim=(-2, -1))))
        return logits

    @torch.no_grad()
    def recognise(self, views: Tensor) -> str:
        """The category of an object from its views `[V, 3|4, H, W]`, each weighing the same."""
        likelihood = self(to_planes(views, 3)).log_softmax(dim=-1).sum(dim=0)
        return self.categories[int(likelihood.argmax())]


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_GROUPS, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.GroupNorm(_GROUPS, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.skip(features) + self.body(features)
        return result


def train_classifier(
    dataset: RenderedDataset,
    *,
    steps: int = 5000,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ViewClassifier:
    """Trains on the input views of a data set; every category is drawn by the square root of its size.

    Args:
        dataset: objects of the train split with categories.
        steps, batch_size, lr: of AdamW with one half cosine.
        seed: of initial weights and order.
        device: where to train.
        progress: called with steps done and their total.

    Raises:
        InvalidInputError: an object has no category.
    """
    if not all(info.category for info in dataset.objects):
        raise InvalidInputError("the classifier needs the category of every object: render assets with an index.csv")
    categories = sorted({info.category for info in dataset.objects})
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ViewClassifier(categories)
    network = network.to(device).train()
    pictures, owners = _small_pictures(dataset, torch.device(device))
    labels = torch.tensor([categories.index(info.category) for info in dataset.objects], device=device)[owners]
    weights = labels.bincount().float().rsqrt()[labels]
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    changes = AugmentConfig(
        color_probability=0.5, hue_deg=20.0, mirror_probability=0.5, blur_probability=0.3, noise=0.04
    )
    for step in range(steps):
        chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        images = _varied(pictures[chosen].float().div_(255), changes, generator)
        loss = F.cross_entropy(network(to_planes(images, 3)), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        decay.step()
        if progress is not None:
            progress(step + 1, steps)
    return network.eval()


def _small_pictures(dataset: RenderedDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """All input views at 64 px, RGBA uint8, and the index of the object of each."""
    small, owners = [], []
    for index in range(len(dataset)):
        frames = torch.nonzero(dataset.roles[index] == INPUT).flatten()
        images = F.interpolate(
            dataset.views(index, frames).images.to(device), (PICTURE_SIZE,) * 2, mode="bilinear", antialias=True
        )
        small.append((images.clamp(0, 1) * 255).round().byte())
        owners.append(torch.full((len(frames),), index, device=device))
    return torch.cat(small), torch.cat(owners)


def _varied(images: Tensor, changes: AugmentConfig, generator: torch.Generator) -> Tensor:
    """RGBA pictures `[N, 4, S, S]`, recoloured a little, mirrored, moved and scaled."""
    from maquette.cameras import Cameras

    count, device = len(images), images.device
    cameras = Cameras.stack([Cameras.orbit([0.0], height=images.shape[-2], width=images.shape[-1])] * count).to(device)
    views = Views(images[:, None], cameras)
    images = augment(views, views, changes, generator)[0].images[:, 0]
    uniform = torch.rand(3, count, generator=generator, device=device) * 2 - 1
    scale, zero = torch.exp(0.2 * uniform[0]), torch.zeros(count, device=device)
    rows = [torch.stack([scale, zero, 0.1 * uniform[1]], 1), torch.stack([zero, scale, 0.1 * uniform[2]], 1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def save_classifier(path: str | Path, network: ViewClassifier, facts: dict[str, str]) -> None:
    """Writes weights and categories."""
    metadata = {**facts, "model": _MODEL, "categories": json.dumps(network.categories)}
    write_weights(path, {name: value.detach().cpu() for name, value in network.state_dict().items()}, metadata)


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> ViewClassifier:
    """Reads what `save_classifier` wrote.

    Raises:
        WeightsError: the file is missing, broken or of something else.
    """
    state, metadata = read_weights(path)
    if metadata.get("model") != _MODEL:
        raise WeightsError(f"{path} is no classifier of views: train one with benchmarks/train_classifier.py")
    network = ViewClassifier(json.loads(metadata["categories"]))
    load_strictly(network, state, path)
    return network.to(device).eval().requires_grad_(False)
