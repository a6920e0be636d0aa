"""Scripted evaluators, for tests of the programs that run them."""

import types

from mmjax.evals import Schedule


class Evaluator:
    """Records the steps it evaluates; raises at the steps in `broken`."""

    def __init__(self, name, *, broken=(), **schedule):
        self.name, self.broken, self.schedule = name, broken, Schedule(**schedule)
        self.seen, self.cleared = [], 0
        self.store = types.SimpleNamespace(clear=self._clear)

    def _clear(self):
        self.cleared += 1

    def run(self, state, step):
        self.seen.append(step)
        if step in self.broken:
            raise RuntimeError("error code 1234")
        return {f"{self.name}/value": float(state["params"])}
