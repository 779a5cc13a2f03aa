"""The reading order of the package is its import order, and its files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports only from what stands before it, inside packages too; `*` is a package's own
# `__init__`. New files find their place here first.
ORDER = """
    errors files
    diffusion: * pixels schedule grid latent_schedule lowpass steps noise denoiser loss flow ddgan
    networks: unet adm_parts adm classifier
    networks: autoencoder text sn scaled fir ddgan discriminator latent_prior diffae_parts diffae
    networks: cut sizes
    networks: * one_step
    domains: * autoencoder model_files autoencoder_folder domain hub schedulers folder
    domains: generator_folder variance
    domains: network_folder classifier translator
    text: * tokens prompts guided blend attention control model
    domains.adapters: * adm_flags adm sn_ddpm ddgan diffae generators adm_classifier cut onnx
    domains.adapters: text_encoders text_parts stable_diffusion ldm sdxl flow flux
    chains: * loop ddgan source shared latent_code lockstep encode decode sample diffae invert
    chains: interpolate engine analysis
    methods: * base ilvr ddib egsde generator cut one_step
    methods: sdedit cyclediffusion edit_friendly ddcm flowedit translate
    text: load clip
    metrics: * columns feature_network weights realism clean_fid features edits
    metrics: faithfulness protocol figure_kinds figures structure judge gather success
    metrics: paired
    guidance: * generators load augment energy classifiers clip energies steering
    guidance: langevin tfg guided
    runs: * folder curve fit_folder task plan checkpoints report markup page
    runs: sharding timing cost comparison comparison_cell comparison_lines comparison_best
    runs: comparison_table comparison_curves comparison_page comparison_ways group_figures
    datamodules: listing colours matching
    datamodules: items reading square_images masks
    datamodules: loading order tars streaming fetching loaded
    datamodules: domain_data domain_images unpaired_images paired_images captioned_images
    datamodules: shards afhq
    datamodules: predict_data
    datamodules: regions translation_images edit_rows edit_images new_images *
    callbacks: * ema loss_curve fit_progress preemption resumption samples
    callbacks: writer progress texts scores sample_scores gallery
    callbacks: plot traces guidance_scores cost
    modules: * training denoiser domain autoencoder text clip covariance ddgan diffae
    modules: diffae_latent translation guidance editing
    modules: classifier cut distillation
    commands: * guard processes parsing recipes trainer_settings lightning_cli same_run
    commands: fit validate test predict guide edit evaluate_files evaluate atlas analyze benchmark
    commands: quickstart_page quickstart_survey quickstart inspect import_ export push completion
    commands: weights
    commands: comparison_files comparison_shape comparison_plan comparison_words comparison_loop
    commands: comparison_runs comparison_guidance compare
    cli __main__
"""
FILES = sorted(p for d in ("cyclelight", "datamodules") for p in (ROOT / d).rglob("*.py"))
# The public names of the package are gathered from below; nothing inside imports from there.
FILES.remove(ROOT / "cyclelight" / "__init__.py")


def order() -> list[str]:
    """The dotted names of all files of ours, in the order in which they may import."""
    names = []
    for line in filter(None, map(str.strip, ORDER.splitlines())):
        package, _, files = line.rpartition(":")
        prefix = package if package == "datamodules" else f"cyclelight.{package}".rstrip(".")
        names += [prefix if name == "*" else f"{prefix}.{name}" for name in files.split()]
    return names


def module(path: Path) -> str:
    """The dotted name of a file; of an `__init__`, that of its package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> set[str]:
    """The files of ours that are imported, at the top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module != "cyclelight", "name the file that defines it"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in order() else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith(("cyclelight", "datamodules"))}


def test_every_file_has_its_place() -> None:
    assert sorted(order()) == sorted(map(module, FILES))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file(path: Path) -> None:
    text, tree, here = path.read_text(), ast.parse(path.read_text()), module(path)
    for name in imports(tree):
        assert order().index(name) < order().index(here), f"{name} stands after {here}"
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            # What a docstring needs to say takes the lines that it takes.
            code = node.body[ast.get_docstring(node) is not None :] or node.body
            assert (node.end_lineno or 0) - code[0].lineno < 60, node.name
        if isinstance(node, ast.Name) and node.id == "print":
            commands = here.startswith(("cyclelight.commands", "cyclelight.cli"))
            assert commands, "results are returned or logged, not printed"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert said.get("weights_only") == "True", "the environment may undo torch's default"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
            limited = [keyword.arg for keyword in node.keywords] == ["formats"]
            assert limited, "Pillow runs Ghostscript for what calls itself EPS: name the formats"
        if isinstance(node, ast.Constant) and node.value == 127.5:
            assert here.endswith(".pixels"), "only pixels.py knows the range of 8-bit images"
