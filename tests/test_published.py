"""Published models by names and shapes of their tensors: what they are built as, and strict loads.

`tests/vectors/published` lists them; nothing there comes from the programs that are tested here.
"""

import json
import re
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, T5Config, T5EncoderModel

from cyclelight.domains.adapters.text_encoders import CLIP_MODELS, PROJECTED, load_encoder
from cyclelight.domains.adapters.text_parts import load_network, outline
from cyclelight.domains.autoencoder_folder import KINDS, load_autoencoder
from cyclelight.domains.model_files import build

FOLDER = Path(__file__).parent / "vectors" / "published"
PARTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "parts.json").read_text())
Shapes = dict[str, tuple[int, ...]]

NETWORKS = {
    kind.__name__: kind
    for kind in (UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel)
}
ENCODERS: dict[str, tuple[dict[str, type], type]] = {
    "CLIPTextModel": (CLIP_MODELS, CLIPTextConfig),
    "CLIPTextModelWithProjection": (PROJECTED, CLIPTextConfig),
    "LDMBertModel": ({"LDMBertModel": LDMBertModel}, LDMBertConfig),
    "T5EncoderModel": ({"T5EncoderModel": T5EncoderModel}, T5Config),
}
NARROW: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
    },
    "AutoencoderKL": {"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 4},
    "CLIPTextModel": {
        **{"vocab_size": 64, "hidden_size": 8, "intermediate_size": 16},
        **{"num_attention_heads": 2, "projection_dim": 8},
    },
    "LDMBertModel": {
        **{"vocab_size": 64, "d_model": 8, "encoder_ffn_dim": 16},
        **{"encoder_attention_heads": 2, "head_dim": 4},
    },
    "T5EncoderModel": {"vocab_size": 64, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2},
    "FluxTransformer2DModel": {
        **{"attention_head_dim": 4, "num_attention_heads": 2, "axes_dims_rope": [0, 2, 2]},
        **{"joint_attention_dim": 12, "pooled_projection_dim": 12},
    },
    "SD3Transformer2DModel": {
        **{"attention_head_dim": 4, "num_attention_heads": 2, "caption_projection_dim": 8},
        **{"joint_attention_dim": 12, "pooled_projection_dim": 12},
        **{"pos_embed_max_size": 8, "sample_size": 8},
    },
}
"""Settings by which models of the same layers, and so of the same names, are small."""
NARROW["CLIPTextModelWithProjection"] = NARROW["CLIPTextModel"]
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What published autoencoders call the parts of attention."""


def expanded(name: str) -> list[str]:
    """`a.{0-1}.b` => `a.0.b`, `a.1.b`."""
    found = re.search(r"\{(\d+)-(\d+)\}", name)
    if found is None:
        return [name]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [
        n for i in numbers for n in expanded(name[: found.start()] + str(i) + name[found.end() :])
    ]


@cache
def listed(part: str) -> Shapes:
    lines = [line.split() for line in (FOLDER / f"{part}.txt").read_text().splitlines()]
    return {n: tuple(map(int, shape)) for name, *shape in lines for n in expanded(name)}


def written(part: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Its config.json, in `folder`."""
    kind = PARTS[part]["class"]
    named = {"architectures": [kind]} if kind in ENCODERS else {"_class_name": kind}
    folder.mkdir(parents=True, exist_ok=True)
    config = {**named, **PARTS[part]["settings"], **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def loaded(part: str, root: Path, *, bare: bool) -> Any:
    """The part of a folder as the loader of text models reads it."""
    kind = PARTS[part]["class"]
    if kind in ENCODERS:
        return load_encoder(root, "part", *ENCODERS[kind], bare=bare)
    if kind in KINDS:
        config = json.loads((root / "part" / "config.json").read_text())
        return build(config, KINDS[kind]) if bare else load_autoencoder(root / "part").network
    if bare:
        sized = "sample_size" in PARTS[part]["settings"]
        return outline(root, "part", NETWORKS[kind], sized=sized)
    return load_network(root, "part", NETWORKS[kind])


def shapes_of(network: Any, part: str) -> Shapes:
    """By the published names."""
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)  # T5's `shared.weight` once more.
    prefix = "text_model." if PARTS[part]["class"] == "CLIPTextModel" else ""
    return {prefix + name.removeprefix(prefix): shape for name, shape in state.items()}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_it_is_built_as_published(part: str, tmp_path: Path) -> None:
    written(part, tmp_path / "part")
    assert shapes_of(loaded(part, tmp_path, bare=True), part) == listed(part)


def test_the_lists_hold_as_many_numbers_as_others_have_counted() -> None:
    numbers = {part: sum(map(prod, listed(part).values())) for part in PARTS}
    for part, known in PARTS.items():
        if known["numbers"] is not None:
            assert numbers[part] == known["numbers"], part
    both = numbers["clip_bigg"] + numbers["clip_l"]
    assert both == 817_720_320  # Of SDXL.
    around = numbers["clip_l_projected"] + numbers["clip_bigg"] + numbers["sd3_vae"]
    for part, known in {
        "sd3_medium": 2_987_080_931,
        "sd35_medium": 3_371_793_763,
        "sd35_large": 9_048_410_595,
    }.items():
        assert numbers[part] + around == known, part


def narrow(part: str, folder: Path) -> dict[str, Tensor]:
    """A small model of the same names, without weights, in `folder`; random ones for it."""
    kind = PARTS[part]["class"]
    settings = dict(NARROW[kind])
    if kind == "UNet2DConditionModel":
        levels = len(PARTS[part]["settings"]["block_out_channels"])
        settings["block_out_channels"] = [8, 16, 32, 32][:levels]
        if part == "sdxl_unet":
            settings |= {"addition_time_embed_dim": 4}
            settings |= {"projection_class_embeddings_input_dim": 30}
    written(part, folder / "part", **settings)
    shapes = shapes_of(loaded(part, folder, bare=True), part)
    assert set(shapes) == set(listed(part))
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def check_loads(part: str, root: Path, weights: dict[str, Tensor], file: dict[str, Tensor]) -> None:
    """A file with these tensors is the model with these weights; with one less it is none."""
    encoder = PARTS[part]["class"] in ENCODERS
    path = root / "part" / ("model" if encoder else "diffusion_pytorch_model")
    path = path.with_suffix(".safetensors")
    save_file({n: v.contiguous() for n, v in file.items()}, path, {"format": "pt"})
    state = loaded(part, root, bare=False).state_dict()
    prefix = "text_model." if PARTS[part]["class"] == "CLIPTextModel" else ""
    for name, value in weights.items():
        assert torch.equal(state[name.removeprefix(prefix)], value), name
    first = next(name for name in file if name.endswith(".weight"))
    faults = {"missing keys": {n: v for n, v in file.items() if n != first}}
    if len(file) < 250:  # Each takes as long as the whole.
        faults["unexpected keys"] = {**file, "one.more.weight": torch.zeros(3)}
    for problem, wrong in faults.items():
        save_file({n: v.contiguous() for n, v in wrong.items()}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=problem):
            loaded(part, root, bare=False)


@pytest.mark.parametrize("part", sorted(set(PARTS) - {"sd35_large", "clip_l_projected"}))
def test_the_published_names_are_read_strictly(part: str, tmp_path: Path) -> None:
    weights = narrow(part, tmp_path)
    check_loads(part, tmp_path, weights, weights)


def test_text_encoders_with_and_without_their_prefix(tmp_path: Path) -> None:
    """Old ones also hold the numbers of the positions."""
    weights = narrow("clip_l", tmp_path)
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    check_loads("clip_l", tmp_path, weights, {**weights, **ids})
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    assert len(bare) == len(weights) and not set(bare) & set(weights)
    check_loads("clip_l", tmp_path, weights, bare)


def test_autoencoders_with_the_names_of_old(tmp_path: Path) -> None:
    weights, old = narrow("sd_vae", tmp_path), dict[str, Tensor]()
    for name, value in weights.items():
        for new, was in OLD_ATTENTION.items():
            name = re.sub(rf"(attentions\.0)\.{re.escape(new)}\.", rf"\1.{was}.", name)
        old[name] = value
    assert len(set(old) - set(weights)) == 16
    check_loads("sd_vae", tmp_path, weights, old)
