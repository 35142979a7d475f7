"""A thread that kills worker processes."""

from __future__ import annotations

import multiprocessing
import random
import threading


class Killer(threading.Thread):
    """Kills a worker of this process at random moments until it is told to stop."""

    def __init__(self, seed: int, longest_s: float):
        super().__init__()
        self.random, self.longest_s = random.Random(seed), longest_s
        self.ended, self.kills = threading.Event(), 0

    def run(self):
        while not self.ended.wait(self.random.uniform(0, self.longest_s)):
            children = multiprocessing.active_children()
            if children:
                self.random.choice(children).kill()
                self.kills += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
