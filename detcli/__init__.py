"""The classic results of object detection: training, evaluation and prediction with one plugin a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detcli.engine.predictor import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from detcli.engine.predictor import load

        return load
    raise AttributeError(f"module 'detcli' has no attribute {name!r}")
