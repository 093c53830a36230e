"""The queue of jobs: one at a time, bounded, cancellable, and nothing that happens in a job ends it."""

from __future__ import annotations

import errno
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from maquette.app.jobs import (
    GenerateRequest,
    JobQueue,
    JobState,
    QueueFullError,
    Report,
    UnknownFileError,
    UnknownJobError,
)
from maquette.errors import InvalidInputError, MaquetteError

Make = Callable[..., JobQueue]


class Work:
    """Stands for the real work: does what the prompt says."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.running = 0
        self.most_at_once = 0
        self.order: list[int] = []

    def __call__(self, request: GenerateRequest, folder: Path, report: Report) -> list[str]:
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.order.append(request.seed)
        self.started.set()
        try:
            return self._do(request, folder, report)
        finally:
            self.running -= 1

    def _do(self, request: GenerateRequest, folder: Path, report: Report) -> list[str]:
        if request.prompt == "loop":
            while True:
                report("looping", 0.5)
                time.sleep(0.002)
        if request.prompt == "wait":
            assert self.go.wait(10)
        errors: dict[str, BaseException] = {
            "ours": InvalidInputError(f"{folder}/picture.png shows nothing"),
            "type": TypeError("secret /home/me"),
            "memory": MemoryError(),
            "cuda": torch.OutOfMemoryError("CUDA out of memory"),
            "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            "exit": SystemExit(3),
            "disk": OSError(errno.ENOSPC, "No space left on device", str(folder)),
            "empty": MaquetteError(),
        }
        if request.prompt in errors:
            raise errors[request.prompt]
        (folder / "asset.ply").write_text(request.prompt)
        (folder / ".half").write_text("")
        (folder / "asset-views").mkdir()
        report("half", 0.5)
        report("back", 0.2)
        return ["the object is small"]


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.go.set()


@pytest.fixture
def make(work: Work, tmp_path: Path) -> Iterator[Make]:
    queues: list[JobQueue] = []

    def build(**changes: float) -> JobQueue:
        settings = {"capacity": 3, "timeout_s": 30.0, "keep_s": 60.0, **changes}
        queues.append(JobQueue(work, tmp_path / "jobs", **settings))  # type: ignore[arg-type]
        return queues[-1]

    yield build
    work.go.set()
    for queue in queues:
        queue.close()
    assert list((tmp_path / "jobs").iterdir()) == []


def job(prompt: str = "a ball", seed: int = 0) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, seed=seed)


def end_of(queue: JobQueue, job_id: str) -> JobState:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = queue.state(job_id)
        if state.finished is not None:
            return state
        time.sleep(0.002)
    raise AssertionError(state)


def test_a_job_goes_from_queued_to_done(make: Make, work: Work) -> None:
    queue = make()
    first = queue.submit(job("wait"))
    assert first.status == "queued" and first.position == 1 and first.finished is None and len(first.id) == 24
    assert work.started.wait(5)
    second = queue.submit(job("b"))
    assert queue.state(first.id).status == "running" and queue.state(first.id).position == 0
    assert second.position == 1 and queue.state(second.id).stage == "waiting"
    work.go.set()
    state = end_of(queue, first.id)
    assert (state.status, state.fraction, state.message) == ("done", 1.0, "")
    assert state.files == ("asset.ply",) and state.warnings == ("the object is small",)
    assert state.finished is not None and state.created <= state.finished
    assert queue.file(first.id, "asset.ply").read_text() == "wait"
    assert end_of(queue, second.id).status == "done"
    assert queue.file(second.id, "asset.ply").read_text() == "b"


def test_one_at_a_time_in_order_and_never_more_than_the_bound_waits(make: Make, work: Work) -> None:
    queue = make()
    states = [queue.submit(job("wait"))]
    assert work.started.wait(5)
    states += [queue.submit(job("wait", seed)) for seed in (1, 2, 3)]
    assert [queue.state(s.id).position for s in states] == [0, 1, 2, 3] and queue.is_full
    with pytest.raises(QueueFullError, match="3 jobs wait"):
        queue.submit(job())
    queue.cancel(states[1].id)
    assert queue.state(states[3].id).position == 2 and not queue.is_full
    states.append(queue.submit(job("wait", 4)))
    work.go.set()
    ends = [end_of(queue, s.id).status for s in states]
    assert ends == ["done", "cancelled", "done", "done", "done"]
    assert work.order == [0, 2, 3, 4] and work.most_at_once == 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("ours", "picture.png shows nothing"),
        ("type", "unexpectedly (TypeError)"),
        ("memory", "ran out of memory"),
        ("cuda", "ran out of memory"),
        ("cpu", "ran out of memory"),
        ("exit", "unexpectedly (SystemExit)"),
        ("empty", "MaquetteError"),
        ("disk", "disk is full"),
    ],
)
def test_what_goes_wrong_in_a_job_is_told_and_ends_nothing_else(make: Make, prompt: str, words: str) -> None:
    queue = make()
    bad, good = queue.submit(job(prompt)), queue.submit(job())
    state = end_of(queue, bad.id)
    assert state.status == "failed" and words in state.message and state.files == ()
    assert "/" not in state.message  # neither paths of this machine
    assert end_of(queue, good.id).status == "done" and queue.is_alive


def test_a_running_job_is_cancelled_by_many_at_once(make: Make, work: Work) -> None:
    queue = make()
    running = queue.submit(job("loop"))
    assert work.started.wait(5)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(queue.cancel(running.id).status)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["cancelled"] * 16
    after = queue.submit(job())
    assert end_of(queue, after.id).status == "done"  # the worker left the endless loop
    assert queue.state(running.id).status == "cancelled"
    assert queue.cancel(after.id).status == "done"  # too late, the result stays
    assert queue.file(after.id, "asset.ply").exists()


def test_a_result_that_comes_after_the_cancel_is_dropped(make: Make, work: Work, tmp_path: Path) -> None:
    queue = make()
    late = queue.submit(job("wait"))
    assert work.started.wait(5)
    queue.cancel(late.id)
    work.go.set()
    end_of(queue, queue.submit(job()).id)
    state = queue.state(late.id)
    assert state.status == "cancelled" and state.files == ()
    assert not list(tmp_path.glob(f"jobs/*/{late.id}"))


def test_jobs_that_run_too_long_fail(make: Make, work: Work) -> None:
    queue = make(timeout_s=0.1)
    looping = queue.submit(job("loop"))
    state = end_of(queue, looping.id)
    assert state.status == "failed" and "longer than 0.1 s" in state.message
    work.started.clear()
    silent = queue.submit(job("wait"))  # never reports: the client is told all the same
    assert work.started.wait(5)
    assert end_of(queue, silent.id).status == "failed"
    work.go.set()
    assert end_of(queue, queue.submit(job()).id).status == "done"


def test_results_are_removed_after_a_while_and_when_there_are_many(make: Make, tmp_path: Path) -> None:
    queue = make(keep_s=0.2, max_kept=2)
    states = [end_of(queue, queue.submit(job()).id) for _ in range(3)]
    with pytest.raises(UnknownJobError, match="results were removed"):
        queue.state(states[0].id)
    assert queue.file(states[2].id, "asset.ply").exists()
    deadline = time.monotonic() + 5
    while list(tmp_path.glob("jobs/*/*")):  # nobody asks: the queue cleans up by itself
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UnknownJobError):
        queue.file(states[2].id, "asset.ply")


def test_uploads_are_let_go_when_the_job_is_over(make: Make) -> None:
    class Holder(bytearray):  # bytes cannot be referred to weakly
        pass

    queue = make()
    upload = Holder(b"x" * 1000)
    gone = weakref.ref(upload)
    state = queue.submit(GenerateRequest(picture=upload))  # type: ignore[arg-type]
    del upload
    end_of(queue, state.id)
    deadline = time.monotonic() + 5
    while gone() is not None:
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)


@pytest.mark.parametrize(
    "name", ["../asset.ply", "/etc/passwd", "asset-views", ".half", "", "asset.ply\0", "..", "a/b"]
)
def test_only_files_of_the_job_are_given_out(make: Make, name: str) -> None:
    queue = make()
    state = end_of(queue, queue.submit(job()).id)
    with pytest.raises(UnknownFileError):
        queue.file(state.id, name)
    for bad in ("..", "../" + state.id, state.id + "/", "", "x" * 10_000):
        with pytest.raises(UnknownJobError):
            queue.file(bad, "asset.ply")
        with pytest.raises(UnknownJobError):
            queue.cancel(bad)


def test_closing_cancels_what_is_left(make: Make, work: Work) -> None:
    queue = make()
    running, waiting = queue.submit(job("loop")), queue.submit(job())
    assert work.started.wait(5)
    queue.close()
    assert not queue.is_alive
    assert {queue.state(s.id).status for s in (running, waiting)} == {"cancelled"}
    with pytest.raises(QueueFullError, match="shutting down"):
        queue.submit(job())
    queue.close()


def test_many_threads_at_once_lose_nothing(make: Make, work: Work) -> None:
    queue = make(capacity=5)
    wrong: list[str] = []

    def client(number: int) -> None:
        for turn in range(5):
            text = f"client {number} turn {turn}"
            while True:
                try:
                    state = queue.submit(job(text))
                    break
                except QueueFullError:
                    time.sleep(0.001)
            end = end_of(queue, state.id)
            if end.status != "done" or queue.file(state.id, "asset.ply").read_text() != text:
                wrong.append(text)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(work.order) == 60 and work.most_at_once == 1


def test_settings_must_be_positive(work: Work, tmp_path: Path) -> None:
    for bad in ({"capacity": 0}, {"timeout_s": 0}, {"keep_s": -1}, {"timeout_s": float("nan")}, {"max_kept": 0}):
        settings = {"capacity": 1, "timeout_s": 1, "keep_s": 1, **bad}
        with pytest.raises(InvalidInputError, match=next(iter(bad))):
            JobQueue(work, tmp_path, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing to start from"),
        ({"prompt": "  "}, "nothing to start from"),
        ({"prompt": "a", "views": b"zip"}, "views go alone"),
        ({"picture": b"p", "views": b"zip"}, "views go alone"),
        ({"prompt": "a", "model": "mvdream-mini"}, "makes views"),
        ({"prompt": "a", "model": "../x"}, "no model"),
        ({"prompt": "a", "model": "gamba-mini"}, "one picture"),
        ({"views": b"zip", "model": "gamba-mini"}, "one picture"),
        ({"picture": b"p", "prompt": "a", "model": "gamba-mini"}, "picture alone"),
        ({"prompt": "a", "formats": ()}, "formats"),
        ({"prompt": "a", "formats": ("ply", "exe")}, "exe"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**32}, "seed"),
        ({"prompt": "a", "steps": 0}, "steps"),
        ({"prompt": "a", "steps": 10**9}, "steps"),
        ({"prompt": "a", "guidance": 0.5}, "guidance"),
        ({"prompt": "a", "guidance": float("nan")}, "guidance"),
        ({"prompt": "a", "guidance": float("inf")}, "guidance"),
        ({"prompt": "a", "cut_out_by": "magic"}, "cut_out_by"),
    ],
)
def test_requests_that_cannot_work_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        GenerateRequest(**values)  # type: ignore[arg-type]


def test_requests_that_work() -> None:
    assert GenerateRequest(picture=b"p", prompt="a").takes_one_picture is False
    assert GenerateRequest(picture=b"p", model="gamba-mini").takes_one_picture
    assert GenerateRequest(views=b"z", formats=("ply",), guidance=1.0, steps=1, seed=2**32 - 1).prompt == ""
