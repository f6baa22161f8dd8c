"""Which changes to one convolution change its output's bits, and in what share of the values.

    python -m benchmarks.what_breaks_bits

Makes the table of docs/principle.md. Uses five draws of weights and inputs. Writes
results/what_breaks_bits.json.
"""

from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.environment import write_result

SEEDS = range(5)
Change = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def differing(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the share of values whose bits differ."""
    one, other = (each.contiguous().view(torch.int32) for each in pair)
    return (one != other).float().mean().item()


def changes(seed: int) -> dict[str, Change]:
    """Return each change as a pair of outputs: the plain convolution's, and the changed one's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, v, bias = normal(32, 32, 16, 16), normal(32, 32, 3, 3) / 17, normal(32) / 4
    log_scale = normal(32) / 4
    scale = log_scale.exp().view(-1, 1, 1, 1)
    weight = (v * scale).detach()
    mean, variance = normal(32) / 4, normal(32).square() + 0.5

    def conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return F.conv2d(x, w, b, padding=1)

    def norm_and_its_fold() -> tuple[torch.Tensor, torch.Tensor]:
        factor = torch.rsqrt(variance + 1e-5)
        normed = F.batch_norm(conv(x, v), mean, variance, eps=1e-5)
        return normed, conv(x, v * factor.view(-1, 1, 1, 1), -mean * factor)

    def training_and_inference() -> tuple[torch.Tensor, torch.Tensor]:
        with_gradients = conv(x, weight.clone().requires_grad_(), bias).detach()
        with torch.inference_mode():
            return with_gradients, conv(x, weight, bias).clone()

    def derived_and_stored() -> tuple[torch.Tensor, torch.Tensor]:
        derived = conv(x, v.clone().requires_grad_() * log_scale.clone().requires_grad_().exp().view(-1, 1, 1, 1), bias).detach()
        return derived, conv(x, weight, bias)

    def channels_last() -> torch.Tensor:
        return conv(x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last), bias)

    return {
        "scale on the activation instead of the weight": lambda: (conv(x, weight), conv(x, v) * scale.view(1, -1, 1, 1)),
        "a BatchNorm replaced by its fold": norm_and_its_fold,
        "a bias added by a separate operation": lambda: (conv(x, weight, bias), conv(x, weight) + bias.view(1, -1, 1, 1)),
        "channels_last instead of contiguous memory": lambda: (conv(x, weight, bias), channels_last()),
        "32 single images instead of a batch of 32": lambda: (
            conv(x, weight, bias),
            torch.cat([conv(each, weight, bias) for each in torch.split(x, 1)]),
        ),
        "training mode with gradients instead of inference mode": training_and_inference,
        "e^g V computed in the forward pass instead of stored": derived_and_stored,
    }


def main() -> None:
    shares: dict[str, list[float]] = {}
    for seed in SEEDS:
        for name, outputs in changes(seed).items():
            shares.setdefault(name, []).append(differing(outputs()))
    rows = {name: {"median": median(each), "min": min(each), "max": max(each), "runs": len(each)} for name, each in shares.items()}
    for name, row in rows.items():
        print(f"{name:56s} {row['median']:7.2%}  ({row['min']:.2%} to {row['max']:.2%})")
    print(write_result("what_breaks_bits", {"share_of_values_that_differ": rows}))


if __name__ == "__main__":
    main()
