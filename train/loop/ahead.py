"""Batches drawn while a GPU is still at earlier ones."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar


Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """What `draw` gives for a step's number and a way of drawing, where both alone decide what that is."""

    def __init__(
        self,
        draw: Callable[[int, bool], Batch],
        steps: int,  # that are drawn ahead, each in a thread of its own; 0 = none
    ):
        self.draw, self.steps = draw, steps
        self.waiting: dict[tuple[int, bool], Future[Batch]] = {}
        self.threads = ThreadPoolExecutor(max(1, steps), thread_name_prefix="draw")

    def take(self, number: int, way: bool) -> Batch:
        """The batch of this step; those of the next ones, in the same way, are begun. Raises what drawing it did."""
        if not self.steps:
            return self.draw(number, way)
        for step in range(number, number + 1 + self.steps):
            if (step, way) not in self.waiting:
                self.waiting[step, way] = self.threads.submit(self.draw, step, way)
        batch = self.waiting.pop((number, way)).result()
        # Of a way that is over, none is asked for any more.
        self.waiting = {key: future for key, future in self.waiting.items() if key[0] > number and key[1] == way}
        return batch
