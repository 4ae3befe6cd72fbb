"""Runs: the runner, its worker processes and their protocol, locks, resuming, events.

`retbench.run.runner` is the entry point; `retbench.run.worker` is the process that measures. Only the worker's
tasks import torch. The package can be called: `retbench.run("latency")` is `retbench.api.run`, whose name is this
package's.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is a function too."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Measure an experiment; see `retbench.api.run`."""
        return import_module("retbench.api").run(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
