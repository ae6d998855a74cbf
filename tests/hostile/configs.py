"""Random small configurations: the example `random_configs` writes each to a file, runs it and compares it with the reference."""
import os

import observe


class Configs:
    def __init__(self, kimi, base, _):
        self.example = os.path.join(os.path.dirname(kimi), "examples", "random_configs")
        self.skipped = None if os.path.exists(self.example) else f"no {self.example}"

    def case(self, draw, directory):
        command = [self.example, "--seed", str(draw.getrandbits(32)), "--count", "1"]
        done = observe.run(command, directory)
        return command, done, done.fault(codes=(0,))
