"""The configuration of a run: one YAML file, checked in full before any model is loaded."""

from flowrl.config.model import LoRAConfig, ModelConfig
from flowrl.config.reward import RewardConfig
from flowrl.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LoRAConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RewardConfig",
    "TrainConfig",
]
