"""Models as records describe them."""

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.records.record import ModelInfo


def info_of(config: ModelConfig) -> ModelInfo:
    """Return what a record states of a model."""
    return ModelInfo(
        name=config.architecture,
        architecture=config.architecture,
        variant=config.variant,
        size="1M",
        num_params=costs.num_params(config),
        num_params_nonembedding=costs.num_params_nonembedding(config),
        config=config.model_dump(mode="json"),
    )
