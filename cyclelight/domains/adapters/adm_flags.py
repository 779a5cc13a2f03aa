"""The flags of guided-diffusion's and improved-diffusion's programs.

Those that the tensors do not tell are needed; those that they do tell may be given, and must agree;
those of sampling and training tell nothing of a network, and are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from cyclelight.diffusion.schedule import NoiseSchedule
from cyclelight.errors import BadValue, at_least

PASSED_OVER = frozenset(
    (
        *("timestep_respacing", "use_kl", "rescale_learned_sigmas", "sigma_small"),
        *("use_checkpoint", "use_fp16", "classifier_use_fp16", "fp16_scale_growth"),
        *("clip_denoised", "num_samples", "batch_size", "use_ddim", "model_path"),
        *("classifier_path", "classifier_scale", "data_dir", "val_data_dir", "noised"),
        *("schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "anneal_lr", "iterations"),
        *("microbatch", "ema_rate", "log_interval", "eval_interval", "save_interval"),
        *("resume_checkpoint",),
    )
)
"""Flags of their scripts that say nothing of what a checkpoint computes."""
WORDS = {**dict.fromkeys(("yes", "true", "t", "y", "1"), "true")}
WORDS |= dict.fromkeys(("no", "false", "f", "n", "0"), "false")
"""How their scripts read what is true or false."""
OF_CLASSIFIERS = {
    "num_channels": "classifier_width",
    "num_res_blocks": "classifier_depth",
    "attention_resolutions": "classifier_attention_resolutions",
    "use_scale_shift_norm": "classifier_use_scale_shift_norm",
    "resblock_updown": "classifier_resblock_updown",
    "pool": "classifier_pool",
}
"""What their classifiers have in place of flags of the same meaning."""


@dataclass(frozen=True)
class ADMFlags:
    """Flags of a checkpoint, in guided-diffusion's own names.

    Needed where the tensors do not tell them are the first ten; the others are read from the
    tensors, and one that is given must agree.

    Args:
        image_size: height and width in pixels; by default the size that guided-diffusion has this
            channel_mult for.
        num_heads: heads of each attention.
        num_head_channels: channels of a head; where given, num_heads is not used. Without both, 64,
            but only for the network of AFHQ 256.
        num_heads_upsample: heads on the way up; by default as on the way down.
        use_new_attention_order: whether q, k and v come before the heads. The AFHQ models have the
            other, legacy order.
        noise_schedule: linear or cosine.
        diffusion_steps: training timesteps.
        rescale_timesteps: whether the network was fed t * 1000 / diffusion_steps, the default of
            improved-diffusion, or t itself, that of guided-diffusion. Needed unless there are 1000.
        predict_xstart: whether the network predicts the clean image.
        class_label: of a network with classes, the one that becomes the domain.
        class_cond: whether the network has classes.
        num_channels: channels that channel_mult multiplies.
        num_res_blocks: residual blocks at each resolution.
        channel_mult: such as 1,2,3,4.
        attention_resolutions: such as 32,16,8.
        use_scale_shift_norm: see `ADMSettings`, as of the two that follow.
        resblock_updown: halve and double within residual blocks.
        learn_sigma: whether the network has a learned variance.
        dropout: of the training; kept for going on with it.
        classifier_width: num_channels of a classifier, as the others that follow.
        classifier_depth: num_res_blocks of a classifier.
        classifier_attention_resolutions: such as 32,16,8.
        classifier_use_scale_shift_norm: see `ADMSettings`.
        classifier_resblock_updown: see `ADMSettings`.
        classifier_pool: attention or adaptive.
    """

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    num_heads_upsample: int | None = None
    use_new_attention_order: bool = False
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    rescale_timesteps: bool | None = None
    predict_xstart: bool = False
    class_label: int | None = None
    class_cond: bool | None = None
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: str | None = None
    attention_resolutions: str | None = None
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    learn_sigma: bool | None = None
    dropout: float | None = None
    classifier_width: int | None = None
    classifier_depth: int | None = None
    classifier_attention_resolutions: str | None = None
    classifier_use_scale_shift_norm: bool | None = None
    classifier_resblock_updown: bool | None = None
    classifier_pool: str | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "num_heads", "num_head_channels", "num_heads_upsample"):
            value = getattr(self, name)
            # guided-diffusion's own defaults of the last two are -1.
            if value is not None and not (value == -1 and name not in ("image_size", "num_heads")):
                at_least(1, **{name: value})
        at_least(1, diffusion_steps=self.diffusion_steps)

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of that name; the linear one keeps its total noise at any length.

        Raises:
            ValueError: there is no such schedule.
        """
        scale = 1000 / self.diffusion_steps
        if self.noise_schedule == "linear":
            return NoiseSchedule.linear(1e-4 * scale, 0.02 * scale, self.diffusion_steps)
        if self.noise_schedule == "cosine":
            return NoiseSchedule.cosine(self.diffusion_steps)
        raise BadValue(
            "noise_schedule", f"noise_schedule must be linear or cosine, got {self.noise_schedule}"
        )

    @property
    def timestep_scale(self) -> float:
        """What the network's timesteps are multiplied by.

        Raises:
            ValueError: it cannot be known.
        """
        if self.diffusion_steps == 1000:
            return 1.0
        if self.rescale_timesteps is None:
            raise BadValue(
                "rescale_timesteps",
                f"with diffusion_steps {self.diffusion_steps} the tensors do not tell how the "
                f"network counts time: give --flags.rescale_timesteps true (improved-diffusion's "
                f"default: t * 1000 / {self.diffusion_steps}) or false (guided-diffusion's: t)",
            )
        return 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0

    def check(self, read: Mapping[str, Any], *, classifier: bool = False) -> None:
        """Raises ValueError, with both values, where a flag that was given is not what was read.

        Args:
            read: what the tensors tell, by the names of `ADMSettings`; None for what they do not.
            classifier: whether they are those of a classifier, which has names of its own.
        """
        for name, found in read.items():
            flag = OF_CLASSIFIERS.get(name, name) if classifier else name
            given = getattr(self, flag, None)
            if given is None or given == "" or found is None:
                continue
            if isinstance(found, tuple | list):
                told = _numbers(flag, given)
                same = sorted(told) == sorted(found) if "attention" in flag else told == [*found]
                found = ",".join(f"{value:g}" for value in found)
            else:
                same = given == found
            if not same:
                raise BadValue(
                    flag, f"--flags.{flag} {given} contradicts the tensors, which say {found}"
                )


def of_levels(flags: ADMFlags, size: int, levels: int, *, classifier: bool = False) -> ADMFlags:
    """The flags without resolutions of attention that no level has, which change nothing."""
    name = "classifier_attention_resolutions" if classifier else "attention_resolutions"
    given = getattr(flags, name)
    if not given:
        return flags
    there = {size >> level for level in range(levels)}
    kept = [value for value in _numbers(name, given) if value in there]
    # A network without any attention but that of its middle is told by a resolution of 0.
    return ADMFlags(**{**asdict(flags), name: ",".join(f"{v:g}" for v in kept) or "0"})


def _numbers(flag: str, given: str) -> list[float]:
    try:
        return [number for word in given.split(",") if (number := float(word))]
    except ValueError as error:
        raise BadValue(
            flag, f"--flags.{flag} must be numbers with commas, got {given!r}"
        ) from error


def plain_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(a command line without the flags that are passed over, these); true and false are words."""
    kinds = get_type_hints(ADMFlags)
    flags = {field.name for field in fields(ADMFlags)}
    truths = {name for name in flags if "bool" in str(kinds[name])}
    kept: list[str] = []
    left_out: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--flags.")
        if name == option or name not in truths | PASSED_OVER:
            kept.append(word)
            continue
        value = value if equals else next(words, "")
        if name in PASSED_OVER:
            left_out.append(name)
        else:
            kept += [option, WORDS.get(value.lower(), value)]
    return kept, left_out
