"""The one tree of settings. A recipe is a TOML file that parses into `Recipe`; every field below can stand in it.

Unknown keys are refused with the nearest known one. Contradictions name both keys. Nothing here imports a heavy package.
"""

from inward.config.audit import JudgeLimits
from inward.config.base import Arm, Batching, Dtype, EngineKind, Quantisation, Settings, VerdictForm
from inward.config.judging import (
    CascadeJudge,
    CombinedJudge,
    EndpointSettings,
    JudgeSettings,
    PairingSettings,
    PairwiseJudge,
    PanelJudge,
    RewardModelJudge,
    Route,
    RoutedJudge,
    SingleJudge,
    VerifiableJudge,
)
from inward.config.prompts import (
    DatasetSource,
    FileSource,
    PromptSettings,
    PromptSource,
    ScaffoldSettings,
    TaskSource,
    ThoughtSettings,
)
from inward.config.recipe import (
    ExecutionSettings,
    ModelSettings,
    Recipe,
    SamplingSettings,
    ValidationSettings,
    load_recipe,
    parse_recipe,
    recipe_json,
)
from inward.config.training import EarlyStopSettings, LoraSettings, TrainingSettings

__all__ = [
    "Arm",
    "Batching",
    "CascadeJudge",
    "CombinedJudge",
    "DatasetSource",
    "Dtype",
    "EarlyStopSettings",
    "EndpointSettings",
    "EngineKind",
    "ExecutionSettings",
    "FileSource",
    "JudgeLimits",
    "JudgeSettings",
    "LoraSettings",
    "ModelSettings",
    "PairingSettings",
    "PairwiseJudge",
    "PanelJudge",
    "PromptSettings",
    "PromptSource",
    "Quantisation",
    "Recipe",
    "RewardModelJudge",
    "Route",
    "RoutedJudge",
    "SamplingSettings",
    "ScaffoldSettings",
    "Settings",
    "SingleJudge",
    "TaskSource",
    "ThoughtSettings",
    "TrainingSettings",
    "ValidationSettings",
    "VerdictForm",
    "VerifiableJudge",
    "load_recipe",
    "parse_recipe",
    "recipe_json",
]
