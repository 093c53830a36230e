"""Any picture to a cut-out: formats, existing alpha, plain backgrounds, rembg, the official centring."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from lgm_goldens import golden
from maquette.errors import InvalidInputError, MissingDependencyError
from maquette.picture.edges import decontaminate
from maquette.picture.plain_background import remove_plain_background
from maquette.picture.prepare import MAX_SIDE, has_cut_out, prepare_picture
from maquette.picture.rembg_models import find_rembg_model
from picture_scenes import BROWN, SIZE, ball, disc, flat, grid, over, overlap


@pytest.fixture(autouse=True)
def no_rembg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without models of rembg."""
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "models"))


# Existing alpha


def test_existing_alpha_is_used_as_it_is() -> None:
    alpha = disc(0.3, -0.2, 0.3) * 0.8
    prepared = prepare_picture(torch.cat([BROWN, alpha[None]]), size=None)
    assert prepared.cut_out_by == "alpha" and prepared.image.shape == (4, SIZE, SIZE)
    assert float(prepared.image[3].max()) == pytest.approx(0.8, abs=1e-3)
    seen = (prepared.image[3] > 0.4).nonzero()
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    assert (high - low + 1 - 0.8 * SIZE).abs().max() <= 3  # official: the object fills 80 %
    assert ((low + high) / 2 - (SIZE - 1) / 2).abs().max() <= 1.5


@pytest.mark.parametrize("case", [0, 1])
def test_alpha_is_centred_and_padded_as_in_the_official_pipeline(case: int) -> None:
    data = golden("recenter")
    image = torch.from_numpy(data[f"in{case}"]).permute(2, 0, 1).float() / 255
    mask = torch.from_numpy(data[f"mask{case}"])
    cut = torch.cat([image[:3], mask[None].float()])
    expected = torch.from_numpy(data[f"out{case}_float"]).permute(2, 0, 1)
    found = prepare_picture(cut, size=None).image
    assert found.shape[1:] == expected.shape[1:]
    inside = ndimage.binary_erosion((found[3] > 0.999).numpy(), iterations=2)
    difference = (found[:3] - expected[:3]).abs().amax(dim=0)
    assert inside.mean() > 0.1 and float(difference[torch.from_numpy(inside)].max()) < 1e-4


def test_hidden_colors_do_not_bleed_into_the_edge() -> None:
    alpha = disc()
    black, green = torch.zeros(3, SIZE, SIZE), flat(0.0, 1.0, 0.0)
    results = []
    for hidden in (black, green):
        image = torch.cat([torch.where(alpha > 0.9, BROWN, hidden), alpha[None]])  # the fringe has the wrong colour
        results.append(prepare_picture(image, size=64).image)
    visible = results[0][3] > 0.3
    for image in results:
        assert float((image[:3] - BROWN[:, :64, :64]).abs().amax(dim=0)[visible].max()) < 0.12
    assert torch.equal(results[0][3], results[1][3])


def test_decontamination_keeps_alpha_and_distant_glass() -> None:
    image = torch.cat([BROWN, disc(-0.5, 0.0, 0.3)[None]])
    image[:3, 80:120, 150:190] = 0.9
    image[3, 80:120, 150:190] = 0.5
    clean = decontaminate(image)
    assert torch.equal(clean[3], image[3])
    assert torch.equal(clean[:3, 85:115, 155:185], image[:3, 85:115, 155:185])


def test_a_few_transparent_pixels_are_no_cut_out() -> None:
    image = torch.cat([over(BROWN, disc(), flat(0.9, 0.9, 0.9)), torch.ones(1, SIZE, SIZE)])
    image[:, :5, :5] = 0  # a round corner
    assert not has_cut_out(image)
    prepared = prepare_picture(image)
    assert prepared.cut_out_by == "plain"
    with pytest.raises(InvalidInputError, match="no transparent background"):
        prepare_picture(image, cut_out_by="alpha")


# Plain backgrounds


def grounds() -> dict[str, Tensor]:
    x, y = grid()
    random = torch.Generator().manual_seed(0)
    vignette = (0.85 - 0.1 * (x**2 + y**2) + 0.05 * x).expand(3, SIZE, SIZE)
    noisy = (flat(0.8, 0.8, 0.85) + 0.015 * torch.randn(3, SIZE, SIZE, generator=random)).clamp(0, 1)
    return {"white": flat(1.0, 1.0, 1.0), "green": flat(0.2, 0.6, 0.3), "vignette": vignette, "noisy": noisy}


@pytest.mark.parametrize("name", ["white", "green", "vignette", "noisy"])
def test_plain_backgrounds_are_removed(name: str) -> None:
    alpha = disc()
    cut = remove_plain_background(over(BROWN, alpha, grounds()[name])).image
    assert overlap(cut[3], alpha) > 0.97
    assert float((cut[3] - alpha).abs().mean()) < 0.01
    solid = cut[3] > 0.3
    assert float((cut[:3] - BROWN).abs().mean(dim=0)[solid].mean()) < 0.03  # no halo of the ground


def test_soft_shadows_belong_to_the_background() -> None:
    alpha = disc()
    shadow = torch.from_numpy(ndimage.gaussian_filter(disc(0.15, 0.2).numpy(), 12.0))
    cut = remove_plain_background(over(BROWN, alpha, flat(1.0, 1.0, 1.0) * (1 - 0.35 * shadow))).image
    assert overlap(cut[3], alpha) > 0.95


def test_white_on_white_is_found_by_its_shading_or_refused() -> None:
    alpha, white = disc(), flat(1.0, 1.0, 1.0)
    found = remove_plain_background(over(ball(0.5), alpha, white))
    assert overlap(found.image[3], alpha) > 0.97
    with pytest.raises(InvalidInputError, match="no object stands out"):
        remove_plain_background(white)


def test_thin_legs_stay() -> None:
    legs = torch.zeros(SIZE, SIZE)
    legs[60:75, 40:160] = 1
    for column in (45, 90, 120, 150):
        legs[75:170, column : column + 2] = 1
    assert overlap(remove_plain_background(over(BROWN, legs, flat(0.9, 0.9, 0.9))).image[3], legs) > 0.97


def test_holes_are_seen_through_with_a_warning() -> None:
    ring = disc(radius=0.8) - disc(radius=0.5)
    cut = remove_plain_background(over(BROWN, ring, flat(0.9, 0.9, 0.9)))
    assert overlap(cut.image[3], ring) > 0.97
    assert any("holes" in warning for warning in cut.warnings)


def test_two_things_are_warned_about() -> None:
    both = disc(-0.5, 0.0, 0.3) + disc(0.5, 0.0, 0.3)
    cut = remove_plain_background(over(BROWN, both, flat(0.9, 0.9, 0.9)))
    assert overlap(cut.image[3], both) > 0.97
    assert any("2 separate things" in warning for warning in cut.warnings)


def unplain() -> dict[str, Tensor]:
    x, y = grid()
    random = torch.Generator().manual_seed(0)
    checks = ((x * 6).floor() + (y * 6).floor()) % 2
    return {
        "checks": over(BROWN, disc(), (0.3 + 0.4 * checks).expand(3, SIZE, SIZE)),
        "noise": torch.rand(3, SIZE, SIZE, generator=random),
        "nothing": (flat(0.7, 0.7, 0.7) + 0.01 * torch.randn(3, SIZE, SIZE, generator=random)).clamp(0, 1),
        "faint": over(flat(0.72, 0.71, 0.70), disc(), flat(0.7, 0.7, 0.7)),
        "fills": over(BROWN, disc(radius=0.99), flat(0.9, 0.9, 0.9)).roll(100, dims=2),
    }


@pytest.mark.parametrize("name", ["checks", "noise", "nothing", "faint", "fills"])
def test_what_cannot_be_cut_out_is_refused_with_advice(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"transparent background\).*rembg"):
        remove_plain_background(unplain()[name])


def test_objects_that_are_cut_off_are_warned_about() -> None:
    prepared = prepare_picture(over(BROWN, disc(0.0, 0.9), flat(0.9, 0.9, 0.9)))
    assert any("bottom edge" in warning for warning in prepared.warnings)


def test_scenes_that_reach_from_side_to_side_are_refused() -> None:
    bars = torch.zeros(SIZE, SIZE)
    bars[90:110], bars[:100, 90:110] = 1, 1
    with pytest.raises(InvalidInputError, match="top, left, right edge, so it is rather"):
        prepare_picture(over(BROWN, bars, flat(0.9, 0.9, 0.9)))


# rembg


def fake_rembg(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    module = types.ModuleType("rembg")
    module.__spec__ = types.SimpleNamespace(name="rembg")  # type: ignore[assignment]

    def remove(picture: Image.Image, session: object) -> Image.Image:
        calls.append((picture.size, session))
        result = picture.convert("RGBA")
        mask = (disc(radius=0.4).numpy() * 255).astype(np.uint8)
        result.putalpha(Image.fromarray(mask))
        return result

    module.remove = remove  # type: ignore[attr-defined]
    module.new_session = lambda name: f"session of {name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rembg", module)


def test_rembg_is_used_when_a_model_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    image = unplain()["checks"]
    fake_rembg(monkeypatch, calls)
    assert find_rembg_model() is None  # installed, but nothing would be downloaded
    with pytest.raises(InvalidInputError, match="not plain"):
        prepare_picture(image)
    (tmp_path / "models").mkdir()
    for name in ("u2net", "isnet-general-use"):
        (tmp_path / "models" / f"{name}.onnx").write_bytes(b"")
    prepared = prepare_picture(image)
    assert prepared.cut_out_by == "rembg" and calls == [((SIZE, SIZE), "session of isnet-general-use")]


def test_asking_for_rembg_without_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rembg.*isnet-general-use\.onnx"):
        prepare_picture(unplain()["checks"], cut_out_by="rembg")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 8, 8), "only 8 x 8 px"),
        (torch.rand(1, 64, 64), r"\[3\|4, H, W\]"),
        (torch.full((3, 64, 64), 255.0), "values in 0..1"),
        (torch.full((3, 64, 64), float("nan")), "values in 0..1"),
        (torch.cat([torch.rand(3, 64, 64), torch.zeros(1, 64, 64)]), "transparent everywhere"),
        (torch.cat([torch.rand(3, 64, 64), torch.eye(64)[None] * 0.4]), "more than half opaque"),
        (torch.cat([BROWN, disc(radius=0.04)[None]]), "only . px large"),
    ],
    ids=["tiny", "gray", "bytes", "nan", "transparent", "ghost", "speck"],
)
def test_what_is_no_picture_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prepare_picture(image)


def test_wrong_options_are_refused() -> None:
    image = torch.cat([BROWN, disc()[None]])
    options: list[tuple[dict[str, Any], str]] = [
        ({"cut_out_by": "magic"}, "alpha, rembg, plain"),
        ({"size": 4}, "size must be at least"),
        ({"border_ratio": 1.0}, "border_ratio"),
    ]
    for arguments, message in options:
        with pytest.raises(InvalidInputError, match=message):
            prepare_picture(image, **arguments)


def test_huge_and_long_pictures_are_made_smaller() -> None:
    wide = torch.zeros(4, 60, 3000)
    wide[:, 10:50, 200:2800] = 0.6
    wide[3, 10:50, 200:2800] = 1
    prepared = prepare_picture(wide, size=None)
    assert prepared.image.shape == (4, MAX_SIDE, MAX_SIDE)
    assert float(prepared.image[0][prepared.image[3] > 0.9].mean()) == pytest.approx(0.6, abs=0.01)


def test_small_objects_are_enlarged_with_a_warning() -> None:
    prepared = prepare_picture(torch.cat([BROWN, disc(radius=0.2)[None]]), size=256)
    assert prepared.image.shape == (4, 256, 256)
    assert any("little detail" in warning for warning in prepared.warnings)


def test_nothing_but_our_own_errors_come_out() -> None:
    """Random pictures of all shapes: gradients, blobs, stripes, noise, with and without alpha."""
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        height, width = (int(2 ** random.uniform(4, 8)) for _ in range(2))
        smooth = [
            ndimage.gaussian_filter(random.random((height, width)), random.choice([0.0, 2.0, 9.0])) for _ in "rgb"
        ]
        values = np.stack([(part - part.min()) / max(float(np.ptp(part)), 1e-9) for part in smooth])
        values = values * random.random() + (1 - random.random()) * 0.5
        if random.random() < 0.4:
            alpha = ndimage.gaussian_filter(random.random((height, width)), 4.0)[None]
            values = np.concatenate([values, alpha > np.median(alpha)])
        image = torch.from_numpy(values.astype(np.float32)).clamp(0, 1)
        try:
            prepared = prepare_picture(image, size=32)
        except InvalidInputError:
            outcomes.add("refused")
            continue
        assert prepared.image.shape == (4, 32, 32) and bool(prepared.image.isfinite().all())
        outcomes.add("prepared")
    assert outcomes == {"refused", "prepared"}
