"""The chain's script, on the smallest network.

Every link that can run here is in its rows, with its figures.
"""

import pytest
import torch

from benchmarks import chain


def test_the_rows_hold_every_link_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "CASES", [("small", "czmig", 32)])
    monkeypatch.setattr(chain, "NUM_IMAGES", 64)
    initial, trained = chain.rows(torch.device("cpu"))
    for row in (initial, trained):
        links = row["links"]
        assert isinstance(links, list)
        assert row["passed"]
        assert [link["observed"] for link in links] == ["bitwise", "bitwise", "budget", "budget"]
        assert all(0 < link["error_max"] <= (link["budget_max"] or 1) for link in links)
    assert initial["case"] == "small, czmig, initial weights"
