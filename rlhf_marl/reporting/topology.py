"""The communication graph and its consensus weights as shapes of an SVG."""

import math
from typing import Any

WIDTH, HEIGHT = 420, 340
_RADIUS, _NODE = 115, 24


def drawing(topology: dict[str, Any] | None) -> dict[str, Any] | None:
    """{nodes: [{x, y, label, weight}], edges: [{x1, y1, x2, y2, width, x, y, weight}]}; None without usable weights.

    Args:
        topology: {"matrix": A (N, N)}, as recorded by the run; a_ij is agent i's weight for agent j's parameters. The
            width of an edge grows with its weight.
    """
    try:
        matrix = [[float(value) for value in row] for row in (topology or {})["matrix"]]
        n = len(matrix)
        if n == 0 or any(len(row) != n for row in matrix):
            return None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    angles = [2 * math.pi * i / n - math.pi / 2 for i in range(n)]
    places = [(WIDTH / 2 + _RADIUS * math.cos(a), HEIGHT / 2 + _RADIUS * math.sin(a)) for a in angles]
    if n == 1:
        places = [(WIDTH / 2, HEIGHT / 2)]
    nodes = [
        {
            "x": round(x, 1),
            "y": round(y, 1),
            "label": str(i),
            "weight": f"{matrix[i][i]:.2f}",
            "weight_x": round(WIDTH / 2 + (x - WIDTH / 2) * (1 + 1.8 * _NODE / _RADIUS), 1),
            "weight_y": round(HEIGHT / 2 + (y - HEIGHT / 2) * (1 + 1.8 * _NODE / _RADIUS) + 4, 1),
        }
        for i, (x, y) in enumerate(places)
    ]
    edges = []
    for i in range(n):
        for j in range(i):
            there, back = matrix[i][j], matrix[j][i]
            if there or back:
                (x1, y1), (x2, y2) = places[i], places[j]
                label = f"{there:.2f}" if math.isclose(there, back, abs_tol=0.005) else f"{there:.2f} / {back:.2f}"
                edges.append(
                    {
                        "x1": round(x1, 1),
                        "y1": round(y1, 1),
                        "x2": round(x2, 1),
                        "y2": round(y2, 1),
                        "width": round(1 + 6 * max(there, back), 1),
                        "x": round(0.6 * x1 + 0.4 * x2, 1),
                        "y": round(0.6 * y1 + 0.4 * y2 + 4, 1),
                        "weight": label,
                    }
                )
    return {"nodes": nodes, "edges": edges, "width": WIDTH, "height": HEIGHT, "radius": _NODE}
