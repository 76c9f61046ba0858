"""The one tree of settings. A recipe is a TOML file that parses into `Recipe`; every field below can stand in it.

Unknown keys are refused with the nearest known one. Contradictions name both keys. Nothing here imports a heavy package.
"""

from inward.config.audit import JudgeLimits
from inward.config.base import Arm, Batching, Dtype, EngineKind, Harmless, Quantisation, Settings, VerdictForm, harmless_keys
from inward.config.combined import CascadeJudge, CombinedJudge, JudgeSettings, PanelJudge, Route, RoutedJudge
from inward.config.endpoint import EndpointSettings
from inward.config.engines import EndpointEngineSettings, EngineOptions, VllmSettings
from inward.config.judging import (
    PairwiseJudge,
    PythonJudge,
    RewardModelJudge,
    SingleJudge,
    VerifiableJudge,
)
from inward.config.pairing import PairingSettings
from inward.config.prompts import (
    DatasetSource,
    FileSource,
    PromptSettings,
    PromptSource,
    PythonSource,
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
    "EndpointEngineSettings",
    "EndpointSettings",
    "EngineKind",
    "EngineOptions",
    "ExecutionSettings",
    "FileSource",
    "Harmless",
    "JudgeLimits",
    "JudgeSettings",
    "LoraSettings",
    "ModelSettings",
    "PairingSettings",
    "PairwiseJudge",
    "PanelJudge",
    "PromptSettings",
    "PromptSource",
    "PythonJudge",
    "PythonSource",
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
    "VllmSettings",
    "harmless_keys",
    "load_recipe",
    "parse_recipe",
    "recipe_json",
]
