"""guided-diffusion's UNet as one function of its tensors: an oracle that shares no code with ours.

Written from the published description of the flags, for small networks; slow and plain.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def forward(state: State, flags: dict[str, Any], x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """The output for images x (B, C, H, W), timesteps t (B,) and labels y (B,)."""
    get = state.__getitem__
    width = get("time_embed.0.weight").shape[1]
    w = torch.exp(-math.log(10000) * torch.arange(width // 2).to(x) / (width // 2))
    angles = t.to(x)[:, None] * w[None]
    emb = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    emb = F.linear(emb, get("time_embed.0.weight"), get("time_embed.0.bias"))
    emb = F.linear(F.silu(emb), get("time_embed.2.weight"), get("time_embed.2.bias"))
    if y is not None:
        emb = emb + get("label_emb.weight")[y]
    levels, n = len(flags["channel_mult"]), flags["num_res_blocks"]
    factors = [2**level for level in range(levels)]
    attends = [flags["image_size"] // f in flags["attention_resolutions"] for f in factors]
    h = conv(state, "input_blocks.0.0", x)
    skips, i = [h], 0
    for level in range(levels):
        for _ in range(n):
            i += 1
            h = residual(state, f"input_blocks.{i}.0", h, emb, flags)
            h = attention(state, f"input_blocks.{i}.1", h, flags) if attends[level] else h
            skips.append(h)
        if level < levels - 1:
            i += 1
            if flags["resblock_updown"]:
                h = residual(state, f"input_blocks.{i}.0", h, emb, flags, half)
            else:
                h = conv(state, f"input_blocks.{i}.0.op", h, stride=2)
            skips.append(h)
    h = residual(state, "middle_block.0", h, emb, flags)
    h = attention(state, "middle_block.1", h, flags)
    h = residual(state, "middle_block.2", h, emb, flags)
    i = 0
    for level in reversed(range(levels)):
        for k in range(n + 1):
            h, j = (
                residual(state, f"output_blocks.{i}.0", torch.cat([h, skips.pop()], 1), emb, flags),
                1,
            )
            if attends[level]:
                h, j = attention(state, f"output_blocks.{i}.1", h, flags, up=True), 2
            if level and k == n:
                if flags["resblock_updown"]:
                    h = residual(state, f"output_blocks.{i}.{j}", h, emb, flags, double)
                else:
                    h = conv(state, f"output_blocks.{i}.{j}.conv", double(h))
            i += 1
    return conv(state, "out.2", F.silu(norm(state, "out.0", h)))


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    mean = groups.mean(2, keepdim=True)
    variance = groups.var(2, keepdim=True, correction=0)
    standard = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return standard * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)


def half(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def residual(
    state: State, name: str, x: Tensor, emb: Tensor, flags: dict[str, Any], change: Any = None
) -> Tensor:
    h = F.silu(norm(state, f"{name}.in_layers.0", x))
    if change is not None:
        h, x = change(h), change(x)
    h = conv(state, f"{name}.in_layers.2", h)
    e = F.linear(
        F.silu(emb), state[f"{name}.emb_layers.1.weight"], state[f"{name}.emb_layers.1.bias"]
    )[:, :, None, None]
    if flags["use_scale_shift_norm"]:
        channels = h.shape[1]
        h = norm(state, f"{name}.out_layers.0", h) * (1 + e[:, :channels]) + e[:, channels:]
    else:
        h = norm(state, f"{name}.out_layers.0", h + e)
    h = conv(state, f"{name}.out_layers.3", F.silu(h))
    skip = f"{name}.skip_connection"
    return h + (conv(state, skip, x) if f"{skip}.weight" in state else x)


def attention(
    state: State, name: str, x: Tensor, flags: dict[str, Any], up: bool = False
) -> Tensor:
    channels = x.shape[1]
    heads = flags.get("num_heads", 1)
    if up and flags.get("num_heads_upsample", -1) != -1:
        heads = flags["num_heads_upsample"]
    if flags.get("num_head_channels", -1) != -1:
        heads = channels // flags["num_head_channels"]
    size = channels // heads
    flat = x.flatten(2)
    qkv = F.conv1d(norm(state, f"{name}.norm", flat), state[f"{name}.qkv.weight"])
    qkv = qkv + state[f"{name}.qkv.bias"][None, :, None]
    out = []
    for head in range(heads):
        if flags.get("use_new_attention_order"):
            starts = [part * channels + head * size for part in range(3)]
        else:
            starts = [(3 * head + part) * size for part in range(3)]
        q, k, v = (qkv[:, start : start + size] for start in starts)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(size), dim=-1)
        out.append(v @ weights.transpose(1, 2))
    h = F.conv1d(
        torch.cat(out, 1), state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"]
    )
    return x + h.reshape(x.shape)
