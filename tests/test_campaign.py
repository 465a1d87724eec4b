"""A small campaign of random integer networks on every engine; `make campaign` runs it in full."""

from __future__ import annotations

import pytest
from campaign import STOCK, campaign

# of each of z, u, v
SIZES = {"torch": (16, 200_000), "loihi": (16, 200_000), "loihi-file": (10, 80_000), "lava": (6, 12_000)}


@pytest.mark.parametrize("engine", SIZES)
def test_random_networks_agree_bit_by_bit(engine: str) -> None:
    networks, values = SIZES[engine]
    row = campaign(engine, engine in STOCK, networks, values, seed=1000)
    assert row.entries["mismatches"] == 0, row.remarks
    assert row.refused == 0 and row.networks == networks
    assert min(row.entries[k] for k in "zuv") > values / 2
    if engine == "lava":
        assert set(row.processes) == {"stock"}
