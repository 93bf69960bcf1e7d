"""showtell: from a folder of captioned photographs to a trained, measured, shareable captioner."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showtell.caption import Run, load_run

__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> Any:
    """Import names that need torch, which takes seconds, at first use only."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import showtell.caption

    return getattr(showtell.caption, name)
