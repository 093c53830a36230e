"""A bounded queue of jobs that one thread works off: GPU work one at a time, whatever clients do meanwhile."""

from __future__ import annotations

import collections
import errno
import gc
import logging
import math
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maquette.app.request import GenerateRequest
from maquette.errors import InvalidInputError, MaquetteError

__all__ = [
    "GenerateRequest",
    "JobQueue",
    "JobState",
    "JobStoppedError",
    "QueueFullError",
    "Report",
    "Status",
    "UnknownFileError",
    "UnknownJobError",
    "Work",
]

Status = Literal["queued", "running", "done", "failed", "cancelled"]

Report = Callable[[str, float], None]
"""Told the stage in words and the fraction of the job that is done, 0..1; raises `JobStoppedError` to end the job."""

Work = Callable[[GenerateRequest, Path, Report], Sequence[str] | None]
"""Does one job: writes its results into the folder, calls the report at every step and returns warnings, if any."""

_OUT_OF_MEMORY = (
    "the machine ran out of memory on this job; try a smaller picture, fewer formats, or fit_mesh off, "
    "or try again when less else is running"
)
_log = logging.getLogger(__name__)


class QueueFullError(MaquetteError):
    """As many jobs wait as may, or the queue was closed; try again later."""


class UnknownJobError(MaquetteError):
    """No job of this id: it never was, or its results were removed."""


class UnknownFileError(MaquetteError):
    """The job has no file of this name."""


class JobStoppedError(MaquetteError):
    """The job was cancelled or ran too long; raised by the report inside the work."""


@dataclass(frozen=True)
class JobState:
    """What is known about a job at one moment.

    Attributes:
        id: unguessable; whoever knows it may see and cancel the job.
        status: cancelled and timed out jobs show it at once, although their work ends at its next step.
        stage: what is being done, in words.
        fraction: of the job that is done, 0..1; never shrinks.
        position: in the queue, 1 is next; 0 when the job no longer waits.
        message: why the job failed or was cancelled, in words; otherwise empty.
        warnings: what may have spoilt the result, as sentences.
        files: names of the finished files; grows while the job runs.
        created, finished: Unix times in seconds; None while the job is not over.
    """

    id: str
    status: Status
    stage: str
    fraction: float
    position: int
    message: str
    warnings: tuple[str, ...]
    files: tuple[str, ...]
    created: float
    finished: float | None


@dataclass(eq=False)
class _Job:
    """A job inside the queue; changed under the queue's lock only."""

    id: str
    folder: Path
    request: GenerateRequest | None
    status: Status = "queued"
    stage: str = "waiting"
    fraction: float = 0.0
    message: str = ""
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)
    finished: float | None = None
    deadline: float = math.inf
    removal: float = math.inf

    @property
    def is_over(self) -> bool:
        return self.status not in ("queued", "running")


class JobQueue:
    """Works off jobs one at a time in a thread of its own; every method may be called from any thread.

    Args:
        work: does a job.
        folder: where results are kept, in a new folder inside it that `close` removes; created when missing.
        capacity: most jobs that wait; one more runs.
        timeout_s: most seconds that a job may run, not counting its wait. It ends at its next report.
        keep_s: seconds after which the results of a job that is over are removed.
        max_kept: most jobs that are over and still kept; the oldest are removed first.

    Raises:
        InvalidInputError: a number is not positive.
    """

    def __init__(
        self, work: Work, folder: str | Path, *, capacity: int, timeout_s: float, keep_s: float, max_kept: int = 500
    ) -> None:
        settings = {"capacity": capacity, "timeout_s": timeout_s, "keep_s": keep_s, "max_kept": max_kept}
        for name, value in settings.items():
            if not value > 0:
                raise InvalidInputError(f"{name} must be more than 0, got {value}")
        self.capacity = capacity
        self._work = work
        self._timeout_s, self._keep_s, self._max_kept = timeout_s, keep_s, max_kept
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="jobs-", dir=folder))
        self._jobs: dict[str, _Job] = {}
        self._waiting: collections.deque[_Job] = collections.deque()
        self._over: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._busy: _Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="maquette-jobs", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for their turn, at most `capacity`."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether `submit` would refuse a job now."""
        return self._closed or len(self._waiting) >= self.capacity

    @property
    def is_alive(self) -> bool:
        """Whether jobs are still worked off."""
        return self._thread.is_alive()

    def check_room(self) -> None:
        """Says whether `submit` would take a job now, before anything is done for it.

        Raises:
            QueueFullError: the queue is full or closed.
        """
        if self._closed:
            raise QueueFullError("the server is shutting down and takes no more jobs")
        if self.is_full:
            raise QueueFullError(f"the queue is full ({self.capacity} jobs wait); try again in a moment")

    def submit(self, request: GenerateRequest) -> JobState:
        """Puts a job at the end of the queue.

        Raises:
            QueueFullError: the queue is full or closed.
        """
        self._tidy()
        with self._changed:
            self.check_room()
            name = secrets.token_urlsafe(18)
            job = _Job(name, self._folder / name, request)
            self._jobs[name] = job
            self._waiting.append(job)
            self._changed.notify_all()
            return self._state_of(job)

    def state(self, job_id: str) -> JobState:
        """The state of a job now.

        Raises:
            UnknownJobError: there is no such job, or it was removed.
        """
        self._tidy()
        with self._changed:
            return self._state_of(self._job(job_id))

    def cancel(self, job_id: str) -> JobState:
        """Cancels a job, unless it is over; the files of a cancelled job are removed.

        Raises:
            UnknownJobError: there is no such job, or it was removed.
        """
        self._tidy()
        with self._changed:
            job = self._job(job_id)
            if not job.is_over:
                self._end(job, "cancelled", "the job was cancelled")
            return self._state_of(job)

    def file(self, job_id: str, name: str) -> Path:
        """The path of a finished file of a job.

        Raises:
            UnknownJobError: there is no such job, or it was removed.
            UnknownFileError: the name is not one of the state's `files`.
        """
        self._tidy()
        with self._changed:
            job = self._job(job_id)
            if name not in job.files:
                raise UnknownFileError(
                    f"the job has no file {name[:80]!r}; it has: {', '.join(job.files) or 'none yet'}"
                )
            return job.folder / name

    def close(self, timeout_s: float = 10.0) -> None:
        """Cancels all jobs, waits for the running one to reach its next step, and removes all results."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                if not job.is_over:
                    self._end(job, "cancelled", "the server was shut down")
            self._changed.notify_all()
        self._thread.join(timeout_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _job(self, job_id: str) -> _Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJobError(
                f"no job {job_id[:40]!r}: the id is wrong, or its results were removed "
                f"({self._keep_s:g} s after the end)"
            )
        return job

    def _state_of(self, job: _Job) -> JobState:
        return JobState(
            id=job.id,
            status=job.status,
            stage=job.stage,
            fraction=job.fraction,
            position=self._waiting.index(job) + 1 if job.status == "queued" else 0,
            message=job.message,
            warnings=job.warnings,
            files=job.files,
            created=job.created,
            finished=job.finished,
        )

    def _end(self, job: _Job, status: Status, message: str = "") -> None:
        """Marks a job as over, once; needs the lock."""
        if job.status == "queued":
            self._waiting.remove(job)
        job.status, job.message, job.request = status, message, None
        job.finished, job.removal = time.time(), time.monotonic() + self._keep_s
        if status == "done":
            job.stage, job.fraction = "done", 1.0
        else:
            job.files = ()
        self._over.append(job)
        self._changed.notify_all()

    def _tidy(self) -> None:
        """Ends a job that runs too long, and removes what was kept long enough."""
        now = time.monotonic()
        removed = []
        with self._changed:
            busy = self._busy
            if busy is not None and not busy.is_over and now > busy.deadline:
                self._end(busy, "failed", f"the job took longer than {self._timeout_s:g} s and was stopped")
            while self._over and (self._over[0].removal < now or len(self._over) > self._max_kept):
                job = self._over.popleft()
                self._jobs.pop(job.id, None)
                removed.append(job)
        for job in removed:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _next(self) -> _Job | None:
        """Waits for a job to do; None when the queue was closed."""
        while True:
            self._tidy()
            with self._changed:
                if self._closed:
                    return None
                if self._waiting:
                    job = self._busy = self._waiting.popleft()
                    job.status, job.stage = "running", "starting"
                    job.deadline = time.monotonic() + self._timeout_s
                    return job
                self._changed.wait(timeout=min(1.0, self._keep_s / 4))

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._do(job)
            with self._changed:
                self._busy = None
                keep = job.status == "done"
            if not keep:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _do(self, job: _Job) -> None:
        """Does one job; nothing that goes wrong in it gets out."""
        request = job.request
        if request is None:  # cancelled at the last moment
            return
        message, out_of_memory = "", False
        warnings: tuple[str, ...] = ()
        try:
            job.folder.mkdir()
            warnings = tuple(self._work(request, job.folder, self._reporter(job)) or ())
        except BaseException as error:  # also what ends programs: the next job must not suffer
            out_of_memory = _is_out_of_memory(error)
            message = _OUT_OF_MEMORY if out_of_memory else self._words(error, job)
        if out_of_memory:  # after the error is gone, whose frames held the tensors
            _free_memory()
        with self._changed:
            if job.is_over:
                return
            job.warnings = warnings
            if message:
                self._end(job, "failed", message)
            else:
                job.files = _files_in(job.folder)
                self._end(job, "done")

    def _reporter(self, job: _Job) -> Report:
        def report(stage: str, fraction: float) -> None:
            self._tidy()
            with self._changed:
                if job.is_over:
                    raise JobStoppedError(job.message)
                job.stage, job.files = stage, _files_in(job.folder)
                if fraction > job.fraction:
                    job.fraction = min(float(fraction), 1.0)

        return report

    def _words(self, error: BaseException, job: _Job) -> str:
        """What to tell the client; paths of this machine are nobody's business."""
        if isinstance(error, MaquetteError):
            return str(error).replace(f"{job.folder}/", "").replace(str(job.folder), "the job") or type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return "the server's disk is full; try again when old results were removed"
        _log.error("job %s failed", job.id, exc_info=error)
        return f"the job failed unexpectedly ({type(error).__name__}); the server's log says more"


def _files_in(folder: Path) -> tuple[str, ...]:
    """Names of the whole files: those that are being written start with a dot."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.name[0] != "." and p.is_file() and not p.is_symlink()))


def _is_out_of_memory(error: BaseException) -> bool:
    """Out of memory of Python, of CUDA (torch.OutOfMemoryError), or of torch's allocator for the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
