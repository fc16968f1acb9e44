"""Checks of schedules of the learning rate."""

from __future__ import annotations

import math

from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

RATE, STEPS = 0.1, 40


@check("surroundings", "schedule", tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and call touch no file and no network, and leave alone what all share."""
    for _ in range(2):  # what is imported on the way may do as it likes, the first time
        with undisturbed("construction", allowed=subject.settings.values()):
            schedule = subject.build(RATE, STEPS)
        with undisturbed("a call", allowed=subject.settings.values()):
            schedule(0)


@check("construction", "schedule", fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the builder gives a function."""
    schedule = subject.build(RATE, STEPS)
    promise(callable(schedule), "a function of the step", type(schedule).__name__)


@check("rates", "schedule")
def _rates(subject: Subject) -> None:
    """Check that every step has a learning rate, also in runs of few steps."""
    for steps in (STEPS, 2):
        schedule = subject.build(RATE, steps)
        for step in range(steps):
            rate = schedule(step)
            sound = isinstance(rate, float | int) and math.isfinite(rate) and rate >= 0
            promise(sound, f"a finite number that is not negative for step {step} of {steps}", repr(rate))
        promise(any(schedule(step) > 0 for step in range(steps)), "a learning rate above 0 in some step", "none")


@check("function_of_the_step", "schedule")
def _function_of_the_step(subject: Subject) -> None:
    """Check that a resumed run, which begins at any step, has the learning rates of an uninterrupted one."""
    forwards, backwards = subject.build(RATE, STEPS), subject.build(RATE, STEPS)
    rates = [forwards(step) for step in range(STEPS)]
    again = [backwards(step) for step in reversed(range(STEPS))][::-1]
    differing = [step for step in range(STEPS) if rates[step] != again[step]]
    promise(not differing, "the same learning rate of a step in whatever order it asks", f"others in steps {differing}")


CHECKS = (_surroundings, _construction, _rates, _function_of_the_step)
