"""The training loop, on one screen.

``train(config)`` trains, validates, saves, and leaves a run's folder behind. It names no loss, device, data format or
parallel scheme: those were chosen by name when the job was prepared. Ctrl-C and SIGTERM end the step, save, and leave;
a second Ctrl-C leaves at once. SIGUSR1 saves, and the run goes on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych import log
from diptych.errors import ConfigError
from diptych.train.build import prepared
from diptych.train.config import OutputOptions, TrainConfig, with_texts
from diptych.train.job import Job

ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """``folder`` of the run, ``steps`` taken of ``total_steps``, and ``main``: whether this process prints and writes.

    ``saved``: the step of the last checkpoint of this sitting, None where it wrote none.
    """

    folder: Path
    steps: int
    total_steps: int
    main: bool = True
    saved: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.steps == self.total_steps


def train(config: TrainConfig) -> Outcome:
    """Run the job that ``config`` describes, to its end or to an interrupt. Raises DiptychError for what a user can fix.

    A path among the options may be a text or any ``os.PathLike``.
    """
    with prepared(with_texts(config)) as job, signaled() as asked:
        with log.progress("train", job.total_steps, job.first_step) as report:
            left = _steps_left(job)
            done = _loop(job, config.output, asked, report) if left else job.first_step
        if not left:
            job.make_up_validation(done)
        job.settle()
        outcome = Outcome(job.run.folder, done, job.total_steps, job.world.main, job.checkpoints.last)
        if outcome.finished:
            job.finish(done)
    return outcome


def _steps_left(job: Job) -> bool:
    """Whether a run, new or resumed, has any step to take. Raises ConfigError when it has taken more than it should."""
    if job.first_step > job.total_steps:
        raise ConfigError(
            f"--resume: {job.first_step} steps were taken already, more than the {job.total_steps} of this run; raise "
            "--max-steps or --epochs."
        )
    return job.first_step < job.total_steps


def _loop(job: Job, output: OutputOptions, asked: Asked, report: log.Report) -> int:
    """Take steps until the end, an interrupt or --stop-after steps; return how many were taken in all."""
    done, before, clock = job.first_step, job.loader.options.start, Clock()
    for batches, position in job.batches():
        clock.got_data()
        job.set_learning_rate(done)
        job.agreement.send(asked.flags(job, output))
        result = job.step(batches)
        job.note(done, before, batches, result)
        done, before = done + 1, position

        last = done == job.total_steps or 0 < output.stop_after <= done - job.first_step  # as every process knows
        stopping, asked_to_save, failed = job.agreement.agreed(asked.flags(job, output))
        stopping = stopping or last
        saving = stopping or asked_to_save or job.events.save(done)
        logging, validating = job.events.log(done), job.validator.wanted and job.events.validate(done)
        if logging or saving or validating:
            job.read_steps()  # waits for the device: part of the work
        clock.stepped(sum(len(batch.keys) for batch in batches) * job.step.layout.size)

        if failed:
            job.settle()
        if logging:
            report(done, job.record(done, position, result, clock.read()))
        if saving:
            job.save(done, position)
            asked.saved()
        if validating:  # after saving: an error in validation costs no step
            job.validate(done, position)
        if stopping:
            break
        clock.resume()
    return done


class Clock:
    """Where the time of training goes, apart from validating and saving: waiting for data, or working.

    ``read`` gives ``pairs_per_second`` over all processes and ``data_wait``, a share from 0 to 1, since the last reading.
    """

    def __init__(self) -> None:
        self._clear()
        self.resume()

    def _clear(self) -> None:
        self._pairs, self._waited, self._worked = 0, 0.0, 0.0

    def resume(self) -> None:
        """The loop asks for its next batch."""
        self._mark = time.perf_counter()

    def got_data(self) -> None:
        """The batch is there."""
        now = time.perf_counter()
        self._waited += now - self._mark
        self._mark = now

    def stepped(self, pairs: int) -> None:
        """The step is done."""
        self._worked += time.perf_counter() - self._mark
        self._pairs += pairs

    def read(self) -> dict[str, float]:
        """The figures since the last reading."""
        spent = max(self._waited + self._worked, 1e-9)
        figures = {"pairs_per_second": self._pairs / spent, "data_wait": self._waited / spent}
        self._clear()
        return figures


class Asked:
    """What signals have asked for: to stop, or to save now; and since when nothing was saved."""

    def __init__(self) -> None:
        self._stop, self._save = threading.Event(), threading.Event()
        self._since = time.monotonic()

    @property
    def to_stop(self) -> bool:
        """Whether Ctrl-C or SIGTERM came."""
        return self._stop.is_set()

    def to_save(self, minutes: float) -> bool:
        """Whether SIGUSR1 came since the last checkpoint, or so many minutes went by (0: any number)."""
        return self._save.is_set() or 0 < 60 * minutes <= time.monotonic() - self._since

    def flags(self, job: Job, output: OutputOptions) -> list[bool]:
        """What the processes agree on: to stop, to save, and that a checkpoint has failed."""
        return [self.to_stop, self.to_save(output.save_every_minutes), job.checkpoints.failed]

    def saved(self) -> None:
        """A checkpoint was written."""
        self._save.clear()
        self._since = time.monotonic()

    def ask(self, number: int, frame: object) -> None:
        """Handle a signal. A second Ctrl-C interrupts at once; a second SIGTERM does not: clusters send several."""
        if number not in ENDING:
            self._save.set()
        elif self.to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._stop.set()


@contextlib.contextmanager
def signaled() -> Iterator[Asked]:
    """Turn Ctrl-C, SIGTERM and SIGUSR1 into questions that the loop asks between steps."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = [*ENDING, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, asked.ask) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
