"""What a reply costs in US dollars, by the prices that come with `genai-prices` or by those of the config.

Each reply is priced alone: beyond some length of the prompt, models cost more for all tokens of that request, so the
price of a sum is not the sum of the prices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from configs.errors import UserError
from data_gen.config import Gemini, OpenAICompatible, Price, Provider, Simulated
from data_gen.llm.chat import ChatReply

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo
    from genai_prices.types import Provider as PriceList

_BATCH_DISCOUNT = 0.5
_IN_A_BATCH = {"processing": "batch"}


class PriceError(UserError):
    """Nobody knows what a model costs."""


def prices_version() -> str:
    """Which prices these are, such as "genai-prices 0.2.3"; they are part of the package and change with it only."""
    import genai_prices

    return f"genai-prices {genai_prices.__version__}"


@dataclass(frozen=True)
class _Listed:
    """A model in a list of prices."""

    price_list: PriceList
    model: ModelInfo


class Prices:
    """The prices of one provider.

    Replies are priced by the model that was asked for, which was looked up here at the start. What a server reports
    as the model that answered is at times a dated version that no list has yet.

    Raises:
      PriceError: neither the config nor genai-prices gives the price of the provider's model or of one of `models`.
        `setting` is where in the config the provider stands.
    """

    def __init__(self, provider: Provider, *, models: Sequence[str] = (), setting: str = "llm") -> None:
        self._provider = provider
        self._setting = setting
        self._listed: dict[str, _Listed] = {}
        if not isinstance(provider, Simulated):
            for model in (provider.model, *models):
                self.usd(model=model, input_tokens=0, output_tokens=0)

    def price_of(self, reply: ChatReply, *, model: str) -> float:
        """USD of a reply to a request for `model`."""
        return self.usd(
            model=model,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cached_tokens=reply.cached_tokens,
        )

    def usd(self, *, model: str, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """USD of one request; `cached_tokens` are some of the input tokens.

        In a batch job: the model's own price there, where one is listed, else half. A price of the config is the
        same for cached tokens. The model in this process costs nothing.

        Raises:
          PriceError: nobody knows the price of this model.
        """
        provider = self._provider
        if isinstance(provider, Simulated):
            return 0.0
        way: Literal["online", "batch"] = "online" if provider.batch is None else "batch"
        if provider.price is not None:
            usd = _given(provider.price, input_tokens=input_tokens, output_tokens=output_tokens)
            return usd * _BATCH_DISCOUNT if way == "batch" else usd
        listed = self._listed.get(model)
        if listed is None:
            listed = self._listed[model] = self._look_up(model, provider=provider)
        from genai_prices import Usage

        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=min(cached_tokens, input_tokens),
        )
        return _listed_usd(listed, usage, way=way)

    def _look_up(self, model: str, *, provider: OpenAICompatible | Gemini) -> _Listed:
        from genai_prices import data_snapshot

        snapshot = data_snapshot.get_snapshot()
        is_gemini = isinstance(provider, Gemini)
        try:
            price_list = snapshot.find_provider(None, *(("google", None) if is_gemini else (None, provider.base_url)))
        except LookupError as error:
            raise self._unknown(model) from error
        # Vertex AI knows a model by a path, and its OpenAI endpoint by publisher/model; the list has the last part.
        names = [model, model.rpartition("/")[2]] if price_list.id == "google" else [model]
        for name in names:
            found = price_list.find_model(name, all_providers=snapshot.providers)
            if found is not None and _has_prices_of_text(found):
                # One provider may offer another's models; in a batch, only a model's own list has a price for it.
                owner = next(p for p in snapshot.providers if any(listed is found for listed in p.models))
                return _Listed(owner, found)
        raise self._unknown(model)

    def _unknown(self, model: str) -> PriceError:
        where = self._setting
        return PriceError(
            f"nobody knows what {model} costs ({prices_version()}), so no budget could hold: say it, in USD per "
            f"million tokens, with {where}.price=@Price {where}.price.input=0.1 {where}.price.output=0.4 on the "
            "command line, or as three lines of the config file; 0 and 0 are right for a server of your own"
        )


def dollars(usd: float) -> str:
    """An amount to show: with two digits after the point, or as many as it takes to show two that count."""
    if not usd or usd >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.{1 - math.floor(math.log10(usd))}f}" if usd >= 1e-6 else "<$0.000001"


def _given(price: Price, *, input_tokens: int, output_tokens: int) -> float:
    return (price.input * input_tokens + price.output * output_tokens) / 1e6


def _has_prices_of_text(model: ModelInfo) -> bool:
    """Whether both directions are priced; some models are listed without."""
    from datetime import UTC, datetime

    prices = model.get_prices(datetime.now(tz=UTC))
    return prices.input_mtok is not None and prices.output_mtok is not None


def _listed_usd(listed: _Listed, usage: object, *, way: Literal["online", "batch"]) -> float:
    price_list, model = listed.price_list, listed.model
    if way == "online":
        return float(model.calc_price(usage, price_list).total_price)
    if any(variant.when == _IN_A_BATCH for variant in model.price_variants or ()):
        return float(model.calc_price(usage, price_list, price_context=_IN_A_BATCH).total_price)
    return float(model.calc_price(usage, price_list).total_price) * _BATCH_DISCOUNT
