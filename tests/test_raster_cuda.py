"""CUDA rasterizer: compilation and cubin cache (no GPU needed), and what only the GPU backend can get wrong."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maquette.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from maquette.raster import nvrtc
from raster_scenes import NAMES, Scene, surface_scene

SOURCES = sorted(path.name for path in Path(nvrtc.__file__).parent.glob("*.cu"))


def has_nvrtc() -> bool:
    try:
        nvrtc.require_nvrtc()
    except MissingDependencyError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="needs cuda-core and NVRTC: pip install 'maquette[cuda]'")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path))
    return tmp_path / "cubins"


# --- compilation -----------------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_compiles(source: str, arch: str, cache: Path) -> None:
    cubin = nvrtc.compile_cubin(source, arch)
    assert cubin[:4] == b"\x7fELF"
    assert [path.read_bytes() for path in cache.iterdir()] == [cubin], "one complete file, no temporary ones"


@needs_nvrtc
def test_cache_is_used_and_keyed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, str, tuple[str, ...]]] = []

    def fake(source: str, arch: str, options: tuple[str, ...] = ()) -> bytes:
        compiled.append((source, arch, tuple(options)))
        return f"{source} {arch} {options}".encode()

    monkeypatch.setattr(nvrtc, "_compile", fake)
    first = nvrtc.compile_cubin(SOURCES[0], "sm_90")
    assert nvrtc.compile_cubin(SOURCES[0], "sm_90") == first and len(compiled) == 1
    nvrtc.compile_cubin(SOURCES[0], "sm_80")
    nvrtc.compile_cubin(SOURCES[0], "sm_90", ("A=1",))
    nvrtc.compile_cubin(SOURCES[1], "sm_90")
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (0, 1, 2))
    nvrtc.compile_cubin(SOURCES[0], "sm_90")
    assert len(compiled) == 5 and len(list(cache.iterdir())) == 5


@needs_nvrtc
def test_unwritable_cache_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MAQUETTE_CACHE", str(blocked))
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: b"cubin")
    assert nvrtc.compile_cubin(SOURCES[0], "sm_90") == b"cubin"
    assert "MAQUETTE_CACHE" in caplog.text


@needs_nvrtc
def test_compile_error_shows_the_log(cache: Path) -> None:
    with pytest.raises(UnsupportedError, match="there are: "):
        nvrtc.compile_cubin("missing.cu", "sm_90")
    with pytest.raises(UnsupportedError, match=r"gaussian_grad\.cu.*sm_90"):
        nvrtc.compile_cubin("gaussian_grad.cu", "sm_90", ("NEAR_Z=-",))
    assert not cache.exists() or not list(cache.iterdir())


def test_launch_hands_values_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for `cuLaunchKernel` reads the parameters as the driver does: by address and low bytes."""
    calls: list[list[object]] = []
    number, handle = ctypes.c_uint, ctypes.c_void_p

    @ctypes.CFUNCTYPE(ctypes.c_int, handle, *[number] * 7, handle, handle, handle)
    def driver(*args: int) -> int:
        slots = (ctypes.c_void_p * 5).from_address(args[9])
        kinds = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_float, ctypes.c_int64)
        read = [kind.from_address(slot).value for kind, slot in zip(kinds, slots, strict=True)]
        calls.append([*args[:9], *read])
        return 1 if args[1] == 13 else 0

    monkeypatch.setattr(nvrtc, "_driver_launch", lambda: driver)
    kernel = nvrtc.CompiledKernel("name", 77, None)
    tensor = torch.zeros(3)
    args = (tensor, None, -5, 0.1, 2**40)
    nvrtc.launch(kernel, 9, (32, 4), *args, shared_bytes=64, stream=6)
    values = [tensor.data_ptr(), 0, -5, pytest.approx(0.1, rel=1e-7), 2**40]
    assert calls == [[77, 9, 1, 1, 32, 4, 1, 64, 6, *values]]
    nvrtc.launch(kernel, 0, 32, *args, stream=6)
    assert len(calls) == 1, "an empty grid is not launched"
    with pytest.raises(UnsupportedError, match="name"):
        nvrtc.launch(kernel, 13, 32, *args, stream=6)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'maquette\[cuda\]'"):
        nvrtc.require_nvrtc()


def test_cpu_tensors_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="cpu"):
        surface_scene(views=1, count=5).render("cuda")


# --- on the GPU ------------------------------------------------------------------------------------------------------


def render(scene: Scene, values: list[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return scene.render("cuda", values)


def piled_scene(count: int, equal_depth: bool) -> Scene:
    """Faint Gaussians that nearly all cover the same few tiles, at equal or at different depths."""
    scene = surface_scene(views=1, count=count, height=40, width=40, seed=9, faint_share=0.0)
    means = 0.05 * scene.values[0]
    if equal_depth:
        forward = scene.world_to_camera[0, 0, 2, :3]
        means = means - (means @ forward)[..., None] * forward
    return scene.replace(means=means, opacities=torch.full_like(scene.values[3], 0.006))


@pytest.mark.gpu
@pytest.mark.parametrize("equal_depth", [False, True])
@pytest.mark.parametrize("count", [900, 3000, 9000])
def test_long_tiles(count: int, equal_depth: bool) -> None:
    """Each of the three sorting kernels, with and without ties."""
    scene = piled_scene(count, equal_depth)
    upstream = scene.upstream()
    images, gradients = scene.to("cuda").gradients("cuda", upstream)
    truth, truth_gradients = scene.to("cuda").gradients("reference", upstream)
    for image, expected in zip(images, truth, strict=True):
        assert (image - expected).abs().mean() < 2e-5
    for name, gradient, expected in zip(NAMES, gradients, truth_gradients, strict=True):
        assert (gradient - expected).norm() < 5e-2 * expected.norm(), name
    if not equal_depth:
        reversed_scene = scene.subset(torch.arange(count).flip(0))
        flipped = render(reversed_scene.to("cuda"))[0]  # a few depths are equal after rounding, and change places
        assert (flipped - images[0]).abs().max() < 1e-3, "the order of the input does not matter"


@pytest.mark.gpu
def test_images_are_the_same_to_the_last_bit() -> None:
    scene = surface_scene(batch=3, views=4, count=20000, height=200, width=300, scale=0.02).to("cuda")
    first = render(scene)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, render(scene), strict=True))


@pytest.mark.gpu
def test_more_tiles_than_16_bits() -> None:
    scene = surface_scene(batch=1, views=5, count=2000, height=2048, width=2048, scale=0.004).to("cuda")
    color, depth, alpha = render(scene)
    for view in (0, 4):
        single = Scene(
            scene.values,
            scene.world_to_camera[:, view : view + 1],
            scene.intrinsics[:, view : view + 1],
            scene.height,
            scene.width,
            scene.background[:, view : view + 1],
        )
        for whole, part in zip((color, depth, alpha), render(single), strict=True):
            assert torch.equal(whole[:, view : view + 1], part)
    assert alpha.max() > 0.5


@pytest.mark.gpu
def test_no_gaussians() -> None:
    scene = surface_scene(views=2, count=4).subset(torch.arange(0)).to("cuda")
    values = [value.requires_grad_() for value in scene.values]
    color, depth, alpha = render(scene, values)
    assert torch.equal(color, scene.background[..., None, None].expand_as(color))
    assert not depth.any() and not alpha.any()
    color.sum().backward()


@pytest.mark.gpu
def test_second_backward_pass() -> None:
    scene = surface_scene(batch=2, views=2, count=300).to("cuda")
    values = [value.requires_grad_() for value in scene.values]
    loss = sum(image.square().sum() for image in render(scene, values))
    assert isinstance(loss, Tensor)
    first = torch.autograd.grad(loss, values, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, values), strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.gpu
def test_misaligned_inputs_and_another_stream() -> None:
    scene = surface_scene(views=2, count=301).to("cuda")
    expected = render(scene)
    shifted = [torch.cat([v.new_zeros(1), v.flatten()])[1:].view_as(v) for v in scene.values]
    assert shifted[1].data_ptr() % 16
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = render(scene, shifted)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.gpu
def test_huge_and_invalid_gaussians_do_not_disturb_others() -> None:
    scene = surface_scene(views=2, count=200, faint_share=0.0)
    clean = render(scene.to("cuda"))
    poison = scene.subset(torch.zeros(12, dtype=torch.long))
    means, quats, scales, opacities, colors = (value.clone() for value in poison.values)
    for i, value in enumerate((torch.nan, torch.inf, 1e38, -1e30)):
        means[:, i, i % 3] = value
        scales[:, 4 + i, i % 3] = value
    quats[:, 8] = 1e30
    quats[:, 9, 1] = torch.nan
    opacities[:, 10] = torch.nan
    colors[:, 11, 2] = torch.inf
    bad = (means, quats, scales, opacities, colors)
    mixed = scene.replace(
        **{name: torch.cat([v, p], 1) for name, v, p in zip(NAMES, scene.values, bad, strict=True)}
    ).to("cuda")
    assert all(torch.isfinite(image).all() for image in render(mixed))
    _, gradients = mixed.gradients("cuda", mixed.upstream())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    unseen = torch.tensor([200, 201, 204, 205, 209, 210, 211])
    assert all(not gradient[:, unseen].any() for gradient in gradients)
    keep = torch.cat([torch.arange(200), unseen])
    for image, expected in zip(render(mixed.subset(keep)), clean, strict=True):
        assert torch.equal(image, expected)
