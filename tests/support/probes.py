"""Values inside a graph, for tests."""

import torch
from torch.fx import GraphModule


class KeepsNodes(torch.fx.Interpreter):
    """Runs a graph and keeps the values of nodes whose names begin with a prefix, in order."""

    def __init__(self, graph: GraphModule, prefix: str) -> None:
        super().__init__(graph)
        self.prefix = prefix
        self.kept: list[torch.Tensor] = []

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        if n.name.startswith(self.prefix):
            assert isinstance(result, torch.Tensor)
            self.kept.append(result)
        return result


def values_of(graph: GraphModule, batch: torch.Tensor, prefix: str) -> list[torch.Tensor]:
    probe = KeepsNodes(graph, prefix)
    with torch.no_grad():
        probe.run(batch)
    assert probe.kept
    return probe.kept
