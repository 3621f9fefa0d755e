"""Profile a device, predict what a network costs there, and train the network to a latency budget.

`import latency_lab` takes no framework: a name below is imported on first use, and one that needs a framework which
is not installed raises `MissingRuntimeError` with the command that installs it.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from latency_lab.extras import missing as _missing

if TYPE_CHECKING:
    from latency_lab.cost import ActivationMemoryCost, Cost, FlopsCost, LatencyCost, ParamsCost, worst_of
    from latency_lab.errors import LatencyLabError
    from latency_lab.fitting import fit_profile
    from latency_lab.graph import ChannelGraph
    from latency_lab.ops import Network, OpConfig
    from latency_lab.plan import general_plan, sweep
    from latency_lab.plan_structure import plan_structure
    from latency_lab.profiles import DeviceProfile, load_profile
    from latency_lab.profiling import profile
    from latency_lab.profiling.doctor import doctor
    from latency_lab.shrink import shrink
    from latency_lab.structure import Structure
    from latency_lab.validation import compare, measure, validate

__version__ = "0.1.0"

_HOMES = {
    "ActivationMemoryCost": "cost",
    "ChannelGraph": "graph",
    "Cost": "cost",
    "DeviceProfile": "profiles",
    "FlopsCost": "cost",
    "LatencyCost": "cost",
    "LatencyLabError": "errors",
    "Network": "ops",
    "OpConfig": "ops",
    "ParamsCost": "cost",
    "Structure": "structure",
    "compare": "validation",
    "doctor": "profiling",
    "fit_profile": "fitting",
    "general_plan": "plan",
    "load_profile": "profiles",
    "measure": "validation",
    "plan_structure": "plan_structure",
    "profile": "profiling",
    "shrink": "shrink",
    "sweep": "plan",
    "validate": "validation",
    "worst_of": "cost",
}

__all__ = [
    "ActivationMemoryCost",
    "ChannelGraph",
    "Cost",
    "DeviceProfile",
    "FlopsCost",
    "LatencyCost",
    "LatencyLabError",
    "Network",
    "OpConfig",
    "ParamsCost",
    "Structure",
    "compare",
    "doctor",
    "fit_profile",
    "general_plan",
    "load_profile",
    "measure",
    "plan_structure",
    "profile",
    "shrink",
    "sweep",
    "validate",
    "worst_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise _missing(error, f"{__name__}.{name}") or error from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps `latency_lab.shrink` the function when the import system binds the submodule of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
