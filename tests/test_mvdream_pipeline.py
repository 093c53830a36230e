"""Pipelines of tiny networks: determinism, options, conditions; loading and importing published folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maquette import generators
from maquette.cli import main
from maquette.convert_checkpoint import import_folder
from maquette.errors import InvalidInputError, MissingDependencyError, WeightsError
from maquette.generators import GENERATORS, GeneratorEntry, get_generator, load_generator
from maquette.models.mvdream import encoders
from maquette.models.mvdream.encoders import clip_pixels
from maquette.models.mvdream.loading import load_pipeline
from maquette.models.mvdream.official import ORIGINAL_PREFIX, build_components, component_state
from maquette.models.mvdream.params import IMAGEDREAM, MVDREAM
from maquette.models.mvdream.pipeline import MultiViewPipeline
from maquette.models.mvdream.tokenizer import letter_tokenizer
from maquette.registry import get_entry
from maquette.weights import read_metadata, read_weights, stored_file, write_weights
from mvdream_stand_ins import TINY_IMAGEDREAM, TINY_MVDREAM, random_pipeline

NAME = "tiny-imagedream"


@pytest.fixture(scope="module")
def from_text() -> MultiViewPipeline:
    return random_pipeline(TINY_MVDREAM)


@pytest.fixture(scope="module")
def from_picture() -> MultiViewPipeline:
    return random_pipeline(TINY_IMAGEDREAM)


def picture() -> Tensor:
    return torch.rand(4, 40, 40, generator=torch.Generator().manual_seed(0))


def test_the_same_seed_gives_the_same_bytes(from_text: MultiViewPipeline, from_picture: MultiViewPipeline) -> None:
    first = from_text("a chair", seed=5, steps=3)
    torch.manual_seed(9)  # the global generator must not matter
    assert torch.equal(from_text("a chair", seed=5, steps=3), first)
    assert not torch.equal(from_text("a chair", seed=6, steps=3), first)
    shown = from_picture("", picture(), seed=5, steps=3)
    assert torch.equal(from_picture("", picture(), seed=5, steps=3), shown)


def test_views_are_pictures(from_text: MultiViewPipeline) -> None:
    calls: list[tuple[int, int]] = []
    views = from_text("a chair", steps=2, num_samples=2, progress=lambda done, total: calls.append((done, total)))
    assert views.shape == (2, 4, 3, 32, 32) and views.dtype == torch.float32
    assert float(views.min()) >= 0 and float(views.max()) <= 1 and not views.is_inference()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(views[1], from_text("a chair", steps=2, seed=1)[0])  # sample i is made from seed + i


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a table"},
        {"negative_prompt": "ugly"},
        {"guidance": 3.0},
        {"temperature": 0.5},
        {"elevation_deg": 20.0},
        {"sampler": "dpm++"},
        {"eta": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_matters(from_text: MultiViewPipeline, options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"prompt": "a chair", "steps": 3}
    assert not torch.equal(from_text(**arguments), from_text(**{**arguments, **options}))


def test_temperature_is_the_strength_of_the_first_noise(from_text: MultiViewPipeline) -> None:
    starts: list[Tensor] = []
    handle = from_text.parts.unet.register_forward_pre_hook(lambda _, inputs: starts.append(inputs[0].clone()))
    views = [from_text("a chair", steps=1, seed=s, temperature=t) for s, t in ((1, 1.0), (1, 0.25), (1, 0.0), (2, 0.0))]
    handle.remove()
    assert float(starts[0].std()) > 0.9 and torch.equal(starts[1], 0.25 * starts[0])
    assert torch.equal(from_text("a chair", steps=1, seed=1), views[0])  # the official preset starts from all of it
    assert torch.equal(views[2], views[3]) and not torch.equal(views[1], views[2])


def test_the_picture_matters_but_not_what_is_behind_it(from_picture: MultiViewPipeline) -> None:
    image = picture()
    image[3] = (image[3] > 0.5).float()
    expected = from_picture("", image, steps=2)
    hidden = image.clone()
    hidden[:3] = torch.where(image[3] > 0, image[:3], 0.7)
    assert torch.equal(from_picture("", hidden, steps=2), expected)
    assert not torch.equal(from_picture("", image.flip(2), steps=2), expected)


def test_the_front_comes_first(from_picture: MultiViewPipeline) -> None:
    conditions = from_picture.conditions(
        "", picture(), negative_prompt="", elevation_deg=0.0, generator=torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(0)
    from_picture.parts.codec.encode(picture()[None, :3], 32, generator)  # the draws that precede the noise
    latents = from_picture.sample(conditions, 2, 5.0, generator=generator)
    official = from_picture.parts.codec.decode(latents[0, :4])
    found = from_picture("", picture(), steps=2, guidance=5.0)[0]
    torch.testing.assert_close(found, official[[1, 2, 3, 0]], atol=1e-5, rtol=0)


def test_guidance_is_one_batch_of_both_halves(from_picture: MultiViewPipeline) -> None:
    rows: list[int] = []
    handle = from_picture.parts.unet.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    from_picture("", picture(), steps=2)
    from_picture("", picture(), steps=2, guidance=1.0)
    handle.remove()
    assert rows == [2, 2, 1, 1]
    conditions = from_picture.conditions(
        "a", picture(), negative_prompt="b", elevation_deg=0.0, generator=torch.Generator()
    )
    unet = from_picture.parts.unet
    assert conditions.picture is not None and conditions.picture_latents is not None
    torch.testing.assert_close(conditions.picture[:1], unet.image_embed(torch.zeros(1, 5, 40)))  # zeros before it
    assert not conditions.picture_latents[0].any() and bool(conditions.picture_latents[1].any())
    assert not conditions.cameras[:, -1].any()


def test_slices_and_half_precision_stay_near(from_text: MultiViewPipeline) -> None:
    expected = from_text("a chair", steps=2)
    sliced = random_pipeline(TINY_MVDREAM, attention_slicing=True)("a chair", steps=2)
    torch.testing.assert_close(sliced, expected, atol=1e-4, rtol=0)
    half = random_pipeline(TINY_MVDREAM, dtype=torch.bfloat16)
    assert {p.dtype for network in half.parts.networks for p in network.parameters()} == {torch.bfloat16}
    assert float((half("a chair", steps=2) - expected).abs().mean()) < 0.1


@pytest.mark.gpu
def test_offload_keeps_the_networks_on_the_cpu() -> None:
    expected = random_pipeline(TINY_MVDREAM)("a chair", steps=2)
    offloaded = random_pipeline(TINY_MVDREAM, device="cpu")
    moved = MultiViewPipeline(TINY_MVDREAM, offloaded.parts, device="cuda", dtype=torch.float32, offload=True)
    found = moved("a chair", steps=2)
    assert found.is_cuda
    assert {p.device.type for network in moved.parts.networks for p in network.parameters()} == {"cpu"}
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=0)


def test_wrong_arguments_are_refused(from_text: MultiViewPipeline, from_picture: MultiViewPipeline) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: from_text(" "), "prompt is empty"),
        (lambda: from_text("a", picture()), "takes a sentence only"),
        (lambda: from_picture("a chair"), "needs a picture"),
        (lambda: from_picture("", picture()[:, :30]), "must be square"),
        (lambda: from_text("a", num_samples=0), "num_samples"),
        (lambda: from_text("a", guidance=0.5), "guidance must be at least 1"),
        (lambda: from_text("a", temperature=1.1), "temperature must lie in 0..1, got 1.1"),
        (lambda: from_text("a", temperature=float("nan")), "temperature must lie in 0..1, got nan"),
        (lambda: from_text("a", steps=0), "steps must lie"),
    ]
    for call, message in calls:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_long_prompts_are_cut_with_a_warning(from_text: MultiViewPipeline) -> None:
    with pytest.warns(UserWarning, match="only the first 77 are read"):
        from_text.parts.text(["very " * 60])


def test_clip_pixels_are_those_of_transformers() -> None:
    from transformers import CLIPImageProcessorPil

    for size in ((40, 40), (300, 260), (200, 320), (224, 301)):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
        array = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        expected = CLIPImageProcessorPil()(array, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(clip_pixels(image, 224), expected, atol=1e-5, rtol=0)


def published_folder(folder: Path, pipeline: MultiViewPipeline) -> Path:
    """The pipeline's weights as the hub has them: fp16, official names, index tables, old attention names."""
    networks = {"unet": pipeline.parts.unet, "vae": pipeline.parts.codec.network}
    networks["text_encoder"] = pipeline.parts.text.network
    if pipeline.parts.picture is not None:
        networks["image_encoder"] = pipeline.parts.picture.network
    new_to_old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for name, network in networks.items():
        state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        if name == "text_encoder":
            state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
            state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        if name == "vae":
            for new, old in new_to_old.items():
                state = {key.replace(new, old): value for key, value in state.items()}
        file = "model.safetensors" if name.endswith("encoder") else "diffusion_pytorch_model.safetensors"
        (folder / name).mkdir(parents=True)
        save_file(state, folder / name / file)
    (folder / "tokenizer").mkdir()
    for content, file in zip(letter_tokenizer(pipeline.params.text_encoder), ("vocab.json", "merges.txt"), strict=True):
        (folder / "tokenizer" / file).write_bytes(content)
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store and a tiny generator in the registry."""
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path / "cache"))
    entry = GeneratorEntry(NAME, TINY_IMAGEDREAM, 1, "Apache-2.0", "For tests.", hub_repository="nobody/tiny")
    monkeypatch.setitem(generators.GENERATORS, NAME, entry)
    return tmp_path


def test_published_folders_are_imported_and_loaded(store: Path, from_picture: MultiViewPipeline) -> None:
    folder = published_folder(store / "tiny", from_picture)
    with pytest.raises(WeightsError, match=r"maquette models import tiny --model tiny-imagedream"):
        load_generator(NAME, device="cpu")
    assert main(["models", "import", str(folder), "--model", NAME]) == 0
    assert read_metadata(stored_file(NAME))["source"] == "tiny"
    loaded = load_generator(NAME, device="cpu")
    expected = from_picture("a chair", picture(), steps=2)
    difference = loaded("a chair", picture(), steps=2) - expected
    assert float(difference.abs().max()) < 0.05  # weights went through half precision
    for given, found in zip(from_picture.parts.networks, loaded.parts.networks, strict=True):
        for name, value in given.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value.half().float(), msg=name)


def test_incomplete_folders_are_refused(store: Path, from_picture: MultiViewPipeline) -> None:
    folder = published_folder(store / "tiny", from_picture)
    state = read_weights(folder / "unet" / "diffusion_pytorch_model.safetensors")[0]
    del state["out.2.bias"]
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    save_file(state, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(WeightsError, match=r"unet of .*out\.2\.bias is missing"):
        import_folder(folder, NAME)
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(WeightsError, match=r"image_encoder holds none of .*tokenizer"):
        import_folder(folder, NAME)
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(InvalidInputError, match="no folder"):
        import_folder(store / "nowhere", NAME)
    assert not stored_file(NAME).exists()


def test_wrong_weight_files_are_refused(store: Path, from_text: MultiViewPipeline) -> None:
    folder = published_folder(store / "text", from_text)
    file = store / "mine.safetensors"
    state = {f"unet.{name}": value for name, value in from_text.parts.unet.state_dict().items()}
    write_weights(file, state, {"model": NAME})
    with pytest.raises(WeightsError, match=r"holds unet; tiny-imagedream has image_encoder, text_encoder, tokenizer"):
        load_pipeline(TINY_IMAGEDREAM, file)
    with pytest.raises(WeightsError, match="image_encoder"):
        import_folder(folder, NAME)


def test_original_checkpoints_have_the_same_names_below_a_prefix() -> None:
    state = {f"{ORIGINAL_PREFIX}out.2.bias": torch.zeros(4), "first_stage_model.x": torch.zeros(1)}
    assert list(component_state("unet", state)) == ["out.2.bias"]


@pytest.mark.parametrize("params", [MVDREAM, IMAGEDREAM], ids=lambda params: params.name)
def test_official_sizes(params: Any) -> None:
    """Parameter counts of the published files: SD's auto-encoder, OpenCLIP ViT-H's towers."""
    with torch.device("meta"):
        components = build_components(params)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in components.items()}
    assert counts["vae"] == 83_653_863 and counts["text_encoder"] == 340_387_840
    assert counts.get("image_encoder") == (632_076_800 if params.takes_picture else None)
    assert sum(counts.values()) == GENERATORS[params.name].num_parameters


def test_generators_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0 and "imagedream" in capsys.readouterr().out
    assert main(["models", "info", "imagedream"]) == 0
    assert "4 views of 256 x 256 px" in capsys.readouterr().out
    assert main(["models", "pull", "mvdream"]) == 1
    assert "maquette models import mvdream-sd2.1-diffusers" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match="mvdream, imagedream"):
        get_generator("zero123")
    with pytest.raises(InvalidInputError, match="makes views, not Gaussians"):
        get_entry("imagedream")


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    for build, part in (
        (encoders.build_text_network, MVDREAM.text_encoder),
        (encoders.build_autoencoder_network, MVDREAM.autoencoder),
        (encoders.build_picture_network, IMAGEDREAM.picture_encoder),
    ):
        call: Any = build
        with pytest.raises(MissingDependencyError, match=r"pip install 'maquette\[diffusion\]'"):
            call(part)


def test_the_registry_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, maquette, maquette.generators; "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
