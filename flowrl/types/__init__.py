"""The nouns of flowrl as data classes, and the protocols of what makes and uses them.

Axis letters mean one thing everywhere:
    N  samples of an iteration, group-major        P  prompts (groups) of an iteration
    G  samples per prompt, N = P * G               D  decisions of a sample (tokens; steps; (time, noise) or mask draws)
    E  events of a sample (turns; steps)           R  rewards
    C  channels, gradients to be combined          ...  the shape of one latent (C, H, W), packed or not

Times run from 1 (noise) to 0 (clean). The canonical continuous process is ``x_t = (1 - t) * clean + t * noise`` with
velocity ``v = noise - clean``; every other parameterisation is converted inside the policy.
"""

from flowrl.types.chats import Chat
from flowrl.types.decisions import (
    Batch,
    IncompatibleError,
    Likelihood,
    Rows,
    StepRows,
    Table,
    TokenScores,
    ViewRows,
    iterate_blocks,
    token_blocks,
)
from flowrl.types.parts import (
    Advantage,
    Aggregation,
    Bounds,
    Coefficient,
    Combination,
    Estimator,
    LossMask,
    LossWeight,
    Memory,
    Objective,
    Regularizer,
    Sampler,
    Selection,
    TokenAdvantage,
)
from flowrl.types.policies import (
    CausalPolicy,
    Decoder,
    Engine,
    FlowPolicy,
    MaskedPolicy,
    Policy,
    Reader,
    TextCondition,
    TokenPolicy,
    TrainedPolicy,
    Weights,
)
from flowrl.types.prompts import Draw, Prompt, first_of_group, place_in_group, prompts_of
from flowrl.types.ranks import OneProcess, Ranks, Share, exchange
from flowrl.types.rollouts import (
    ALL_TOKENS,
    DATA,
    POLICY,
    REPLAY,
    CfgGrad,
    Condition,
    Dynamics,
    Judge,
    Rollout,
    Samples,
    Scores,
    Steps,
    TokenTrace,
    Truncation,
)

__all__ = [
    "ALL_TOKENS",
    "DATA",
    "POLICY",
    "REPLAY",
    "Advantage",
    "Aggregation",
    "Batch",
    "Bounds",
    "CausalPolicy",
    "CfgGrad",
    "Chat",
    "Coefficient",
    "Combination",
    "Condition",
    "Decoder",
    "Draw",
    "Dynamics",
    "Engine",
    "Estimator",
    "FlowPolicy",
    "IncompatibleError",
    "Judge",
    "Likelihood",
    "LossMask",
    "LossWeight",
    "MaskedPolicy",
    "Memory",
    "Objective",
    "OneProcess",
    "Policy",
    "Prompt",
    "Ranks",
    "Reader",
    "Regularizer",
    "Rollout",
    "Rows",
    "Sampler",
    "Samples",
    "Scores",
    "Selection",
    "Share",
    "StepRows",
    "Steps",
    "Table",
    "TextCondition",
    "TokenAdvantage",
    "TokenPolicy",
    "TokenScores",
    "TokenTrace",
    "TrainedPolicy",
    "Truncation",
    "ViewRows",
    "Weights",
    "exchange",
    "first_of_group",
    "iterate_blocks",
    "place_in_group",
    "prompts_of",
    "token_blocks",
]
