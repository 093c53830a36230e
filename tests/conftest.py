"""Which tests run: `gpu` ones need CUDA, `slow` ones `--slow`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", default=False, help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU and a CUDA build of torch")
    run_slow = config.getoption("--slow") or "slow" in config.getoption("markexpr", "")
    run_gpu = any(item.get_closest_marker("gpu") for item in items) and _has_cuda()
    for item in items:
        if item.get_closest_marker("slow") and not run_slow:
            item.add_marker(skip_slow)
        if item.get_closest_marker("gpu") and not run_gpu:
            item.add_marker(skip_gpu)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


FAILED = pytest.StashKey[bool]()
"""On a test that failed: for fixtures that then say more."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.excinfo is not None:
        item.stash[FAILED] = True
    return report
