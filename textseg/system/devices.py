"""Devices: which one to use, and data classes whose tensors move together from device to device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:  # contracts.py imports this file, and listing components must not import torch
    import torch


class Movable:
    """A base class for dataclasses whose tensors move together between devices; other fields stay unchanged."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # the child has them

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on another device."""
        return self._moved("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, from which copies to a GPU need not wait."""
        return self._moved("pin_memory")

    def _moved(self, method: str, *arguments: Any, **options: Any) -> Self:
        tensors = {name: value for name, value in vars(self).items() if hasattr(value, method)}
        return replace(self, **{name: getattr(value, method)(*arguments, **options) for name, value in tensors.items()})


def chosen_device(name: torch.device | str | None = None) -> torch.device:
    """Return the device of that name; without a name the GPU, or the CPU where there is no GPU."""
    import torch

    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
