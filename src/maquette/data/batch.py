"""Renders many assets: in parallel, resumably, and so that a broken asset costs only itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.data.assets import Asset, open_assets
from maquette.data.contact_sheet import write_contact_sheet
from maquette.data.layout import ObjectInfo, read_index, write_index
from maquette.data.plans import RenderOptions
from maquette.data.render import render_variants, write_object
from maquette.device import choose_device
from maquette.errors import InvalidInputError
from maquette.io.atomic import atomic_write_text

Progress = Callable[[int, int, int], None]
"""Called with (finished, failed, total) after every object."""

_MAX_SHEET_OBJECTS = 60
_SAVE_EVERY_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of one asset: three pictures of it, or the reason why it failed."""

    info: ObjectInfo
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True)
class RenderReport:
    """Counts of one call.

    Attributes:
        rendered, skipped, failed: objects rendered now, finished before, and listed in `failures.json`.
        seconds: wall-clock time.
    """

    rendered: int
    skipped: int
    failed: int
    seconds: float


def render_set(
    source: str | Path,
    output: str | Path,
    options: RenderOptions,
    *,
    device: str = "auto",
    workers: int | None = None,
    split: str | None = None,
    ids: Sequence[str] = (),
    limit: int | None = None,
    progress: Progress | None = None,
) -> RenderReport:
    """Renders assets into a data set folder; finished objects of an earlier call are kept.

    Args:
        source, split, ids: see `maquette.data.assets.open_assets`.
        output: folder of the data set; made when missing.
        options: how to render. A folder can only be continued with the same options.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        workers: processes; None takes one per CPU core, 1 renders in this process.
        limit: at most this many assets (the first by id).
        progress: called after every object.

    Raises:
        InvalidInputError: the folder holds a data set with other options, nothing to render, or no such kind of device.
        UnsupportedError: this machine has no such GPU.
    """
    started = time.monotonic()
    place, root = str(choose_device(device)), Path(output)
    count = workers if workers is not None else os.cpu_count() or 1
    if count < 1:
        raise InvalidInputError(f"workers must be >= 1, got {count}")
    if limit is not None and limit < 1:
        raise InvalidInputError(f"limit must be >= 1, got {limit}")
    with open_assets(source, split=split, ids=tuple(ids)) as listed:
        assets = listed.assets[:limit]
        record = _Record(root, options)
        todo = [asset for asset in assets if not record.is_finished(asset.info)]
        if limit is None:
            record.failures.update(dict.fromkeys(listed.missing, "listed in the index, but there is no such .glb"))
        record.save()
        total, skipped = len(assets), len(assets) - len(todo)
        if progress is not None:
            progress(skipped, 0, total)
        failed = 0
        try:
            for outcome in _render_all(todo, root, options, place, min(count, max(1, len(todo)))):
                record.add(outcome)
                failed += outcome.failure is not None
                if progress is not None:
                    progress(skipped + record.rendered, failed, total)
        finally:  # also when interrupted
            record.save()
        write_contact_sheet(root / "contact.png", dict(sorted(record.pictures.items())))
    return RenderReport(record.rendered, skipped, len(record.failures), time.monotonic() - started)


class _Record:
    """What is finished and what failed, mirrored to `dataset.json` and `failures.json`."""

    def __init__(self, root: Path, options: RenderOptions) -> None:
        self.root, self.settings = root, options.settings()
        self.objects: dict[str, ObjectInfo] = {}
        self.failures: dict[str, str] = {}
        self.pictures: dict[str, list[NDArray[np.uint8]]] = {}
        self.rendered = 0
        self._saved_at = time.monotonic()
        root.mkdir(parents=True, exist_ok=True)
        if (root / "dataset.json").exists():
            found, objects = read_index(root)
            if found != self.settings:
                differing = sorted(k for k in {*found, *self.settings} if found.get(k) != self.settings.get(k))
                changes = ", ".join(f"{k}: {found.get(k)!r} there, {self.settings.get(k)!r} now" for k in differing)
                raise InvalidInputError(f"{root} was rendered with other options ({changes}): choose another folder")
            self.objects = {info.id: info for info in objects if self._exists(info.id)}

    def _exists(self, object_id: str) -> bool:
        return (self.root / object_id / "transforms.json").is_file()

    def is_finished(self, info: ObjectInfo) -> bool:
        """Whether an earlier call rendered it (then it is listed, also when that call was killed)."""
        if not self._exists(info.id):
            return False
        self.objects[info.id] = info
        return True

    def add(self, outcome: Outcome) -> None:
        """Counts one asset; saves now and then."""
        if outcome.failure is None:
            self.objects[outcome.info.id] = outcome.info
            self.rendered += 1
            if len(self.pictures) < _MAX_SHEET_OBJECTS:
                self.pictures[outcome.info.id] = outcome.pictures
        else:
            self.failures[outcome.info.id] = outcome.failure
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Writes both files atomically."""
        write_index(self.root, self.settings, list(self.objects.values()))
        entries = [{"id": name, "reason": reason} for name, reason in sorted(self.failures.items())]
        atomic_write_text(self.root / "failures.json", json.dumps({"failures": entries}, indent=1) + "\n")
        self._saved_at = time.monotonic()


def render_asset(asset: Asset, root: Path, options: RenderOptions, device: str) -> Outcome:
    """Renders one asset into `root/<id>`: under a temporary name first, so that a folder there is complete.

    Everything that goes wrong with the asset becomes the reason of its failure.
    """
    temporary = root / f".{asset.info.id}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        mesh = asset.read_mesh()
        rendered = render_variants(mesh, asset.info.id, asset.info.realistic, options, device)
        pictures = write_object(temporary, rendered, options, {"id": asset.info.id, "license": asset.info.license})
        shutil.rmtree(root / asset.info.id, ignore_errors=True)
        temporary.rename(root / asset.info.id)
    except Exception as error:  # one broken asset must not end the run: its reason is recorded
        return Outcome(asset.info, failure=f"{type(error).__name__}: {error}"[:500])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Outcome(asset.info, pictures)


def _render_all(
    assets: Sequence[Asset], root: Path, options: RenderOptions, device: str, workers: int
) -> Iterator[Outcome]:
    if workers == 1:
        for asset in assets:
            yield render_asset(asset, root, options, device)
        return
    waiting = deque(assets)
    while waiting:
        suspects: list[Asset] = []
        yield from _render_in_pool(waiting, suspects, root, options, device, workers)
        again = deque(suspects)  # a worker died (out of memory, a crash in a library): one by one, to find which
        while again:
            dead: list[Asset] = []
            yield from _render_in_pool(again, dead, root, options, device, 1)
            for asset in dead:
                yield Outcome(asset.info, failure="the process that rendered it died (out of memory?)")


def _render_in_pool(
    waiting: deque[Asset], suspects: list[Asset], root: Path, options: RenderOptions, device: str, workers: int
) -> Iterator[Outcome]:
    """Renders until `waiting` is empty or a worker dies; then `suspects` gets what was being rendered."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers) if device == "cpu" else 1
    most = 2 * workers if workers > 1 else 1
    running: dict[Future[Outcome], Asset] = {}
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
        while waiting or running:
            try:
                while waiting and len(running) < most:
                    running[pool.submit(render_asset, waiting[0], root, options, device)] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    del running[future]
                    yield outcome
            except BrokenProcessPool:
                suspects.extend(running.values())
                return
            except BaseException:  # interrupted, or the consumer has stopped: what has not begun is dropped
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _start_worker(threads: int) -> None:
    """Shares the CPU cores among the workers (the CPU rasterizer follows torch's number of threads)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(threads)
