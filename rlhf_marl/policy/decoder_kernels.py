"""The kernels between the products of a decode step, in Triton; decoder_reference.py defines what they compute.

Sums are in float32; what the module tree rounds to the model's dtype is rounded here too. Block sizes are fixed, so a
run repeats bit for bit.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from rlhf_marl.policy.decoder import Fused

# The fastest of those tried at TinyLlama's shape (docs/performance.md).
_ROWS, _COLUMNS = 8, 128  # per program of `gate`; rows of one agent share its B
_PLACES = 128  # of the cache, per round of `attend`


def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x = torch.empty_like(hidden)
    width = hidden.shape[1]
    block = triton.next_power_of_2(width)
    _add_and_norm[(len(hidden),)](
        hidden, hidden, hidden, weight, x, 0, epsilon, 0, 1, ADD=False, RANK=0, WIDTH=width, BLOCK=block, num_warps=8
    )
    return x


def add_and_norm(hidden: Tensor, y: Tensor, fused: "Fused", active: range, weight: Tensor, epsilon: float) -> Tensor:
    x = torch.empty_like(hidden)
    rows, width = hidden.shape
    _add_and_norm[(rows,)](
        hidden,
        y,
        fused.b,
        weight,
        x,
        y.stride(0),
        epsilon,
        *_rows(rows, active),
        ADD=True,
        RANK=_rank(fused, active),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=16,
    )
    return x


def gate(y: Tensor, fused: "Fused", active: range) -> Tensor:
    width = fused.widths[0]
    x = y.new_empty(len(y), width)
    first_agent, rows_per_agent = _rows(len(y), active)
    _gate[(max(1, len(active)), triton.cdiv(rows_per_agent, _ROWS), triton.cdiv(width, _COLUMNS))](
        y,
        fused.b,
        x,
        y.stride(0),
        first_agent,
        rows_per_agent,
        RANK=_rank(fused, active),
        WIDTH=width,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=8,
    )
    return x


def rotate_and_store(
    y: Tensor,
    fused: "Fused",
    active: range,
    rotation: tuple[Tensor, Tensor],
    position: Tensor,
    slot: Tensor,
    keys: Tensor,
    values: Tensor,
    n_heads: int,
) -> Tensor:
    rows, kv_heads, capacity, size = keys.shape
    queries = y.new_empty(rows, n_heads, size)
    _rotate_and_store[(rows, n_heads + 2 * kv_heads)](
        y,
        fused.b,
        *rotation,
        position,
        slot,
        queries,
        keys,
        values,
        y.stride(0),
        *_rows(rows, active),
        RANK=_rank(fused, active),
        HEADS=n_heads,
        KV_HEADS=kv_heads,
        CAPACITY=capacity,
        HALF=size // 2,
        num_warps=1,
    )
    return queries


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, slot: Tensor) -> Tensor:
    rows, n_heads, size = queries.shape
    kv_heads, capacity = keys.shape[1:3]
    group = n_heads // kv_heads
    attended = torch.empty_like(queries)
    _attend[(rows, kv_heads)](
        queries,
        keys,
        values,
        mask,
        slot,
        attended,
        size**-0.5,
        KV_HEADS=kv_heads,
        CAPACITY=capacity,
        GROUP=group,
        GROUP_BLOCK=max(16, triton.next_power_of_2(group)),
        SIZE=size,
        PLACES=_PLACES,
        num_warps=4,
        num_stages=2,
    )
    return attended.view(rows, n_heads * size)


def _rows(rows: int, active: range) -> tuple[int, int]:
    """The first row's agent, and rows per agent."""
    return active.start, rows // max(1, len(active))


def _rank(fused: "Fused", active: range) -> int:
    return fused.b.shape[1] if active else 0


@triton.jit
def _add_and_norm(
    hidden, y, b, weight, x, y_stride, epsilon, first_agent, rows_per_agent,
    ADD: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    dtype = x.dtype.element_ty
    total = tl.load(hidden + row * WIDTH + columns, inside, 0.0).to(tl.float32)
    if ADD:
        added = tl.load(y + row * y_stride + columns, inside, 0.0).to(tl.float32)
        if RANK > 0:
            agent = first_agent + row // rows_per_agent
            low = y + row * y_stride + WIDTH + agent * RANK
            for j in range(RANK):
                of_b = tl.load(b + (agent * RANK + j) * WIDTH + columns, inside, 0.0).to(tl.float32)
                added += tl.load(low + j).to(tl.float32) * of_b
        total = (total + added.to(dtype).to(tl.float32)).to(dtype)
        tl.store(hidden + row * WIDTH + columns, total, inside)
        total = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total) / WIDTH + epsilon)
    normed = (total * scale).to(dtype).to(tl.float32)
    tl.store(x + row * WIDTH + columns, tl.load(weight + columns, inside, 0.0).to(tl.float32) * normed, inside)


@triton.jit
def _gate(
    y, b, x, y_stride, first_agent, rows_per_agent,
    RANK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    agent = first_agent + tl.program_id(0)
    of_agent = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = (tl.program_id(0) * rows_per_agent + of_agent).to(tl.int64)[:, None]
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (of_agent < rows_per_agent)[:, None] & (columns < WIDTH)[None, :]
    dtype = x.dtype.element_ty
    at = y + row * y_stride + columns[None, :]
    gates = tl.load(at, inside, 0.0).to(tl.float32)
    up = tl.load(at + WIDTH, inside, 0.0).to(tl.float32)
    if RANK > 0:
        low = y + row * y_stride + 2 * WIDTH + agent * 2 * RANK
        present = (of_agent < rows_per_agent)[:, None]
        for j in range(RANK):
            of_b = b + (agent * RANK + j) * 2 * WIDTH + columns
            b_gate = tl.load(of_b, columns < WIDTH, 0.0).to(tl.float32)[None, :]
            b_up = tl.load(of_b + WIDTH, columns < WIDTH, 0.0).to(tl.float32)[None, :]
            gates += tl.load(low + j, present, 0.0).to(tl.float32) * b_gate
            up += tl.load(low + RANK + j, present, 0.0).to(tl.float32) * b_up
    gates = gates.to(dtype).to(tl.float32)
    opened = (gates * tl.sigmoid(gates)).to(dtype).to(tl.float32)
    tl.store(x + row * WIDTH + columns[None, :], (opened * up.to(dtype).to(tl.float32)).to(dtype), inside)


@triton.jit
def _rotate_and_store(
    y, b, cosine, sine, position, slot, queries, keys, values, y_stride, first_agent, rows_per_agent,
    RANK: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CAPACITY: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * 2 * HALF
    columns = tl.arange(0, HALF)
    dtype = queries.dtype.element_ty
    part = (head >= HEADS).to(tl.int32) + (head >= HEADS + KV_HEADS).to(tl.int32)
    begin = head * 2 * HALF
    first = tl.load(y + row * y_stride + begin + columns).to(tl.float32)
    second = tl.load(y + row * y_stride + begin + HALF + columns).to(tl.float32)
    if RANK > 0:
        agent = first_agent + row // rows_per_agent
        low = y + row * y_stride + width + (agent * 3 + part) * RANK
        for j in range(RANK):
            of_b = b + (agent * RANK + j) * width + begin + columns
            value = tl.load(low + j).to(tl.float32)
            first += value * tl.load(of_b).to(tl.float32)
            second += value * tl.load(of_b + HALF).to(tl.float32)
    first = first.to(dtype).to(tl.float32)
    second = second.to(dtype).to(tl.float32)
    place = tl.load(slot)
    if part < 2:
        at = tl.load(position + row) * 2 * HALF + columns
        cos_first, sin_first = tl.load(cosine + at).to(tl.float32), tl.load(sine + at).to(tl.float32)
        cos_second, sin_second = tl.load(cosine + at + HALF).to(tl.float32), tl.load(sine + at + HALF).to(tl.float32)
        turned = first * cos_first - second * sin_first
        second = second * cos_second + first * sin_second
        first = turned
    if part == 0:
        out = queries + (row * HEADS + head) * 2 * HALF + columns
    elif part == 1:
        out = keys + ((row * KV_HEADS + head - HEADS) * CAPACITY + place) * 2 * HALF + columns
    else:
        out = values + ((row * KV_HEADS + head - HEADS - KV_HEADS) * CAPACITY + place) * 2 * HALF + columns
    tl.store(out, first.to(dtype))
    tl.store(out + HALF, second.to(dtype))


@triton.jit
def _attend(
    queries, keys, values, mask, slot, attended, scale,
    KV_HEADS: tl.constexpr, CAPACITY: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    members = tl.arange(0, GROUP_BLOCK)
    columns = tl.arange(0, SIZE)
    dtype = attended.dtype.element_ty
    of_group = ((row * KV_HEADS + head) * GROUP + members[:, None]) * SIZE + columns[None, :]
    q = tl.load(queries + of_group, members[:, None] < GROUP, 0.0)
    last = tl.load(slot)
    cache = (row * KV_HEADS + head) * CAPACITY
    largest = tl.full((GROUP_BLOCK,), -1e30, tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    sums = tl.zeros((GROUP_BLOCK, SIZE), tl.float32)
    for begin in range(0, last + 1, PLACES):
        places = begin + tl.arange(0, PLACES)
        seen = (places <= last) & (tl.load(mask + row * CAPACITY + places, places <= last, 0) != 0)
        at = (cache + places[:, None]) * SIZE + columns[None, :]
        k = tl.load(keys + at, seen[:, None], 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        new_largest = tl.maximum(largest, tl.max(tl.where(seen[None, :], scores, -1e30), 1))
        shares = tl.where(seen[None, :], tl.exp(scores - new_largest[:, None]), 0.0)
        before = tl.exp(largest - new_largest)
        total = total * before + tl.sum(shares, 1)
        v = tl.load(values + at, seen[:, None], 0.0)
        sums = sums * before[:, None] + tl.dot(shares.to(dtype), v, input_precision="ieee")
        largest = new_largest
    tl.store(attended + of_group, (sums / total[:, None]).to(dtype), members[:, None] < GROUP)
