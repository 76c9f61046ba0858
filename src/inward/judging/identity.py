"""Which models a judge is made of: digests of their content, since a path or a name can come to hold another model."""

from __future__ import annotations

from pathlib import Path

from inward.config import CombinedJudge, JudgeSettings, PairwiseJudge, RewardModelJudge, SingleJudge
from inward.models.identity import content_digest
from inward.models.names import local_folder
from inward.records import content_id


def judge_identity(settings: JudgeSettings, key: str = "judge") -> dict[str, str]:
    """Return a digest for every setting of a judge that names a model or a tokenizer: "judge.path", "judge.first.path", ...

    `key` is where the judge stands in the recipe. A folder has the digest of its content, a tokenizer that of the special
    tokens that are read from it. A judge without a model has none, nor does a server's model, which only the server knows.
    Raises `UsageError` where there is no such model.
    """
    singles: dict[str, SingleJudge]
    if isinstance(settings, CombinedJudge):
        singles = {f"{key}.{part}": single for part, single in settings.parts.items()}
    else:
        singles = {key: settings}
    folders = {f"{part}.path": folder for part, single in singles.items() if (folder := _folder(single)) is not None}
    digests = {folder: content_digest(folder) for folder in set(folders.values())}
    tokenizers = {
        f"{part}.endpoint.tokenizer": digest for part, single in singles.items() if (digest := _tokenizer_digest(single))
    }
    return {setting: digests[folder] for setting, folder in folders.items()} | tokenizers


def _folder(settings: SingleJudge) -> Path | None:
    if isinstance(settings, RewardModelJudge):
        from inward.judging.reward_model.heads import model_folder

        return model_folder(settings)
    if isinstance(settings, PairwiseJudge) and settings.path is not None:
        return local_folder(settings.path, trust_remote_code=settings.trust_remote_code)
    return None


def _tokenizer_digest(settings: SingleJudge) -> str | None:
    if not isinstance(settings, PairwiseJudge) or settings.endpoint is None or settings.endpoint.tokenizer is None:
        return None
    from inward.judging.pairwise.disarm import load_special_tokens

    return content_id(*sorted(load_special_tokens(settings.endpoint.tokenizer, "judge.endpoint.tokenizer")))
