"""The benchmark from a picture to Gaussians, at stand-in sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maquette.evaluation.bench import STAGES, VARIANTS, bench_picture_to_gaussians, markdown, write_report
from maquette.models.lgm.params import LGM_MINI
from maquette.models.mvdream.graphs import GraphedCall
from mvdream_stand_ins import TINY_IMAGEDREAM

WHERE = {"device": "a processor, 2 threads", "torch": "2", "commit": "0123456789abcdef", "date": "today"}


def test_every_stage_is_timed_and_reported(tmp_path: Path) -> None:
    results = bench_picture_to_gaussians(
        torch.device("cpu"), params=TINY_IMAGEDREAM, lgm=LGM_MINI, steps=2, repeats=1, variants=VARIANTS[:1]
    )
    assert set(results[0].stages) == set(STAGES) and all(value > 0 for value in results[0].stages.values())
    assert results[0].total == pytest.approx(sum(results[0].stages.values()))
    text = markdown(results, WHERE, 2, 5.0)
    assert "kernel by kernel, channels last" in text and f"{results[0].total:.3f}" in text
    paths = write_report(tmp_path, results, WHERE, 2, 5.0)
    assert [path.name for path in paths] == ["generate_cpu.json", "generate_cpu.md"]


@pytest.mark.gpu
def test_recorded_calls_compute_the_same() -> None:
    network = torch.nn.Linear(8, 8).cuda()
    first, second = torch.randn(2, 3, 8, device="cuda")
    with torch.no_grad():
        graphed = GraphedCall(network, (first,))
        torch.testing.assert_close(graphed(second), network(second))
        torch.testing.assert_close(graphed(first), network(first))
