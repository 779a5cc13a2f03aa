"""CUTModule: train the one generator of CUT or FastCUT (`lightning fit`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyclelight.diffusion.loss import finite
from cyclelight.diffusion.noise import keyed_generator
from cyclelight.diffusion.pixels import to_float
from cyclelight.domains.translator import CUT, Translator, save_translator
from cyclelight.errors import BadValue, at_least
from cyclelight.modules.training import TrainingModule, mirror
from cyclelight.networks import arrange
from cyclelight.networks.cut import CUTSettings, PatchDiscriminator, PatchSampleF, draw_positions
from datamodules import DomainData, UnpairedImages

BETAS = (0.5, 0.999)
"""Of Adam, as published."""


def lsgan(judged: Tensor, real: bool) -> Tensor:
    """The mean of (D - 1)^2 where patches should be real, else of D^2 (Mao et al. 2017, Eq. 9)."""
    return (judged.float() - float(real)).square().mean()


def patch_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """PatchNCE of each image: how well a patch finds its own among those of its image; (B,).

    The mean over patches s of -log(exp(q_s k_s / tau) / sum_s' exp(q_s k_s' / tau)) (Park et al.
    2020, Eq. 2 and 3, of one layer). Gradients reach the queries alone.

    Args:
        query: unit vectors (B, P, C) of the patches of the translations.
        key: unit vectors (B, P, C) of the same patches of the images themselves.
        temperature: tau.
    """
    with torch.autocast(query.device.type, enabled=False):  # Its logits go up to 1 / tau.
        logits = query.float() @ key.detach().float().mT / temperature
        return -logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)


def _refuse(data: str) -> NoReturn:
    raise ValueError(f"CUTModule takes images of two domains (UnpairedImages), got {data}")


class CUTModule(TrainingModule):
    """A generator that makes images of a target domain of those of a source domain.

    Contrastive unpaired translation (Park et al. 2020): a discriminator says whether patches look
    like the target's, and PatchNCE holds each patch of a translation to the patch that it comes
    from. The losses are Eq. 4: GAN + lambda_nce NCE(x, G(x)) + lambda_identity NCE(y, G(y)). CUT
    has 1 and 1; FastCUT has 10 and 0, and `flip_equivariance`. The data are `UnpairedImages`. The
    fit ends by writing `generator/` into the output folder, which the method CUT takes.

    Generator and discriminator learn in turns: a batch is two optimizer steps, and so they are
    counted by `trainer.max_steps` and `warmup_steps`. Several processes take the strategy
    `ddp_find_unused_parameters_true`.

    Args:
        name: what to call what it makes, such as dog; by default as the folder of the target's
            images.
        resolution: height and width of the images in pixels, a multiple of 4.
        channels: channels of the images: 3, or 1 for greyscale.
        network: shape of the generator.
        discriminator_width: channels of the discriminator at the finest resolution.
        discriminator_layers: how often it halves the resolution; 3 judges patches of 70 pixels, or
            of all that a smaller image has.
        lambda_nce: weight of PatchNCE between sources and their translations.
        lambda_identity: weight of PatchNCE between images of the target and what becomes of them.
        flip_equivariance: whether in half of the steps mirrored images are translated, whose
            features must be the mirrored ones.
        nce_layers: the layers of the generator whose features are compared, in ascending order:
            0 is the image, 4 and 8 the ways down, from 12 on residual blocks.
        num_patches: patches of each image that are compared, at most.
        nce_temperature: tau of PatchNCE.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n). At 0, as published, there is none.
        learning_rate: peak learning rate of all networks.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range.
    """

    product, mark = CUT.product, CUT.mark
    curves = ("train/nce", "val/nce")
    automatic_optimization = False

    def __init__(
        self,
        name: str | None = None,
        resolution: int = 256,
        channels: int = 3,
        network: CUTSettings = CUTSettings(),  # noqa: B008 (frozen)
        discriminator_width: int = 64,
        discriminator_layers: int = 3,
        lambda_nce: float = 1.0,
        lambda_identity: float = 1.0,
        flip_equivariance: bool = False,
        nce_layers: tuple[int, ...] = (0, 4, 8, 12, 16),
        num_patches: int = 256,
        nce_temperature: float = 0.07,
        ema_decay: float = 0.0,
        learning_rate: float = 2e-4,
        warmup_steps: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(ema_decay, learning_rate, warmup_steps=warmup_steps, **training)
        at_least(1, resolution=resolution, channels=channels, num_patches=num_patches)
        at_least(0, lambda_nce=lambda_nce, lambda_identity=lambda_identity)
        if not nce_temperature > 0:
            raise BadValue(
                "nce_temperature", f"nce_temperature must be above 0, got {nce_temperature}"
            )
        self.name, self.resolution, self.channels = name, resolution, channels
        self.lambda_nce, self.lambda_identity = lambda_nce, lambda_identity
        self.flip_equivariance, self.nce_layers = flip_equivariance, tuple(nce_layers)
        self.num_patches, self.nce_temperature = num_patches, nce_temperature
        self.generator = network.build(resolution=resolution, channels=channels)
        self.projections = PatchSampleF(self.generator.feature_channels(self.nce_layers))
        self.discriminator = PatchDiscriminator(
            channels, discriminator_width, discriminator_layers, resolution
        )
        arrange(self.generator)
        arrange(self.discriminator)
        self.val_nce = MeanMetric()

    @property
    def trained_network(self) -> nn.Module:
        network: nn.Module = self.generator
        return network

    def configure_optimizers(self) -> Any:
        """AdamW for generator and projections, and for the discriminator, in this order."""
        learners = [*self.generator.parameters(), *self.projections.parameters()]
        return [
            torch.optim.AdamW(each, self.learning_rate, BETAS, weight_decay=self.weight_decay)
            for each in (learners, list(self.discriminator.parameters()))
        ]

    def on_fit_start(self) -> None:
        """Refuse now what would come to light amid the training.

        Raises:
            ValueError: the data have no images of a target.
        """
        super().on_fit_start()
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, DomainData) and not isinstance(datamodule, UnpairedImages):
            _refuse(type(datamodule).__name__)

    def on_train_start(self) -> None:
        """The learning rates are set at each step, from the present settings."""
        self.factor = self.rate_factor()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step of the discriminator, then one of the generator.

        Raises:
            ValueError: the data have no images of a target.
        """
        if "target" not in batch:
            _refuse("batches without target")
        x, random = self.training_images(batch, batch_idx)
        y = to_float(batch["target"])
        y = mirror(y, random) if self.flip else y
        by_generator, by_discriminator = self._prepared()

        flipped = self.flip_equivariance and bool(torch.rand((), generator=random) < 0.5)
        given = torch.cat([x, y]) if self.lambda_identity else x
        made = self.generator(given.flip(3) if flipped else given)
        fake, same = made[: len(x)], made[len(x) :]

        judged = self.discriminator(fake.detach()), self.discriminator(y)
        loss = 0.5 * (lsgan(judged[0], False) + lsgan(judged[1], True))
        self._learn(by_discriminator, loss)
        self.log("train/discriminator", loss)

        self.discriminator.requires_grad_(False)
        gan, nce = lsgan(self.discriminator(fake), True), self.nce(x, fake, flipped, random).mean()
        loss = gan + self.lambda_nce * nce
        if self.lambda_identity:
            identity = self.nce(y, same, flipped, random).mean()
            loss = loss + self.lambda_identity * identity
            self.log("train/identity", identity)
        self._learn(by_generator, loss)
        self.discriminator.requires_grad_(True)
        self.log("train/gan", gan)
        self.log("train/nce", nce, prog_bar=True)

    def _prepared(self) -> Any:
        """The optimizers, with this step's learning rate."""
        optimizers: Any = self.optimizers()
        rate = self.learning_rate * self.factor(self.global_step)
        for optimizer in optimizers:
            (group,) = optimizer.optimizer.param_groups
            group["lr"], group["weight_decay"] = rate, self.weight_decay
        return optimizers

    def _learn(self, optimizer: Any, loss: Tensor) -> None:
        finite(loss, self.global_step)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def nce(self, real: Tensor, made: Tensor, flipped: bool, random: torch.Generator) -> Tensor:
        """PatchNCE of each image, mean over the layers (Eq. 3): (B,).

        Args:
            real: images (B, C, R, R).
            made: what the generator made of them, or of their mirror images.
            flipped: whether of their mirror images.
            random: draws the patches, the same for all images; a CPU's.
        """
        queries = self.generator.features(made, self.nce_layers)
        if flipped:
            queries = [features.flip(3) for features in queries]
        with torch.no_grad():
            features = self.generator.features(real, self.nce_layers)
            positions = draw_positions(features, self.num_patches, random)
            keys = self.projections(features, positions)
        pairs = zip(self.projections(queries, positions), keys, strict=True)
        losses = [patch_nce(query, key, self.nce_temperature) for query, key in pairs]
        return torch.stack(losses).mean(0)

    def pictures(self, real: Tensor, first: int) -> Tensor:
        """The translations of the real images."""
        made: Tensor = self.generator(real)
        return made

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """PatchNCE between sources and their translations, at the same patches each time."""
        if not len(batch["image"]):  # What a process without images gets.
            return
        x, random = to_float(batch["image"]), keyed_generator(self.seed, "val")
        self.val_nce.update(self.nce(x, self.generator(x), False, random))

    def on_validation_epoch_end(self) -> None:
        """Log it, mean over images."""
        self.log("val/nce", self.val_nce, prog_bar=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self.log("test/nce", self.val_nce)

    def card(self) -> dict[str, Any]:
        """What `cut.json` says."""
        return {
            **super().card(),
            "lambda_nce": self.lambda_nce,
            "lambda_identity": self.lambda_identity,
            "flip_equivariance": self.flip_equivariance,
        }

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write the generator's folder."""
        datamodule = getattr(self.trainer, "datamodule", None)
        name = self.name or getattr(datamodule, "name", None) or "target"
        made = Translator(self.generator, (name,), self.card())
        return save_translator(folder, made, weights)
