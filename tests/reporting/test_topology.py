"""The drawing of the communication graph."""

from rlhf_marl.reporting.topology import drawing


def test_topology_has_an_edge_for_every_weight():
    drawn = drawing({"matrix": [[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]})
    assert [edge["weight"] for edge in drawn["edges"]] == ["0.25", "0.25"]
    assert [node["weight"] for node in drawn["nodes"]] == ["0.50", "0.75", "0.75"]
    assert drawing({"matrix": [[1, 2]]}) is None
    assert drawing(None) is None
