"""MoE-CAP: cost, accuracy and performance of sparse Mixture-of-Experts deployments.

The functions that assess a system are importable from here; everything is loaded on first use, so that reading a
table does not import torch.

>>> from moecap import s_mbu
>>> round(s_mbu(activated_bytes=25.8e9, kv_bytes=0.1e9, tpot_s=0.02, peak_bytes_per_s=2.0e12), 3)
0.647
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

_EXPORTS = {
    "anatomy": "moecap.model.counted",
    "mbu": "moecap.metrics.utilization",
    "mfu": "moecap.metrics.utilization",
    "s_mbu": "moecap.metrics.utilization",
    "s_mfu": "moecap.metrics.utilization",
    "MoecapError": "moecap.errors",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("moecap")
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'moecap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
