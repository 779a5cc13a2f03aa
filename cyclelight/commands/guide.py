"""`lightning guide`: steer a generator by energies of its images."""

from lightning.pytorch import Callback

from cyclelight.callbacks.guidance_scores import GuidanceScores
from cyclelight.callbacks.traces import GuidanceTraces
from cyclelight.commands.guard import UsageError
from cyclelight.commands.parsing import keep_settings_apart
from cyclelight.commands.predict import Predict, run
from cyclelight.guidance.classifiers import ClassEnergy, FeatureEnergy  # noqa: F401 (short names)
from cyclelight.guidance.clip import ClipEnergy  # noqa: F401
from cyclelight.guidance.energies import CustomEnergy, DistanceEnergy  # noqa: F401
from cyclelight.guidance.steering import Steering
from cyclelight.guidance.tfg import TFG  # noqa: F401
from cyclelight.modules.guidance import GuidanceModule
from datamodules.new_images import NewImages

keep_settings_apart(Steering)


class Guide(Predict):
    """Guidance: as `predict`, with the ways of the images beside them."""

    name = "guide"
    summary = "Steer a generator, without training, to images that please a judge."
    default_model = GuidanceModule
    default_data = NewImages
    # Gradients through many calls of a network are to be right: no choice by the hardware.
    makes_images = False
    scores_class = GuidanceScores

    def instantiate_classes(self) -> None:
        """Whether the generator can begin at given images is known without its weights."""
        super().instantiate_classes()
        begun_at = getattr(self.datamodule, "searched", None)
        if isinstance(self.model, GuidanceModule) and begun_at is not None:
            generator = self.model.generator
            if not generator.encodes:
                raise UsageError(
                    f"--data: {generator.name} cannot encode images, so that none can be begun at; "
                    f"take NewImages"
                )

    def more_callbacks(self) -> list[Callback]:
        return [GuidanceTraces()]


def guide(args: list[str]) -> int:
    """`lightning guide`; the exit code."""
    return run(Guide, args)
