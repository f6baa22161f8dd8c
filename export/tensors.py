"""Tensors as the bytes of a safetensors file."""

from collections.abc import Mapping

import safetensors.torch
import torch


def tensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file's content; the same tensors give the same bytes."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
