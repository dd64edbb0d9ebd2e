"""A judge is nobody that it judges: neither a model that is compared, nor the teacher of one.

Models prefer what they wrote themselves, and what a student of theirs wrote in their manner (arXiv 2404.13076).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import UserError
from data_gen.config import Gemini, OpenAICompatible, Provider, Simulated
from data_gen.llm.simulated import NAME
from wizard_jax.evaluate.config import Judge, Participant


class SelfJudging(UserError):
    """A judge would judge itself, or its student."""


def check_independent(
    judges: Mapping[str, Judge],
    models: Mapping[str, Participant],
    teachers: Mapping[str, Sequence[Provider]],
) -> None:
    """Refuses a judge that is one of the models, or that wrote the data which one of them learned from.

    `teachers` has, by model, who rewrote and answered its data. The same model is the same name at the same address,
    or the same folder. The simulated model is refused as a model, but not as a teacher: it judges by the truth of its
    world or by a stated rule, and knows no manner to prefer. Leave the call out where `self_judging` is set.

    Raises:
      SelfJudging: names both, and says what to do.
    """
    for judge_name, judge in judges.items():
        who = identity(judge.llm)
        for model_name, model in models.items():
            if identity(model) == who:
                raise SelfJudging(
                    f"judges.{judge_name} is the same model as models.{model_name} ({' '.join(who)}): it would judge "
                    "itself; name another judge, or set self_judging = True to have it so"
                )
        for model_name, wrote in teachers.items():
            if not isinstance(judge.llm, Simulated) and who in map(identity, wrote):
                raise SelfJudging(
                    f"judges.{judge_name} ({' '.join(who)}) wrote what models.{model_name} was trained on, and would "
                    "judge its own manner; name another judge, or set self_judging = True to have it so"
                )


def identity(participant: Participant) -> tuple[str, ...]:
    """What makes two participants the same model, whatever else is set of them."""
    match participant:
        case Simulated():
            return (NAME,)
        case OpenAICompatible():
            return participant.model, _address(participant.base_url)
        case Gemini():
            return participant.model, _address(participant.base_url) or "Gemini"
        case _:
            path = participant.path
            return (path if "://" in path else str(Path(path).resolve()),)


def _address(url: str) -> str:
    """Host, port and path in one spelling."""
    parts = urlsplit(url)
    host = parts.netloc.lower().removesuffix({"https": ":443", "http": ":80"}.get(parts.scheme, ":"))
    return host.replace("localhost", "127.0.0.1") + parts.path.rstrip("/")
