"""What replies cost: by a list of prices, by the config, in a batch; and that an unknown price is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from data_gen.config import Gemini, OpenAIBatch, OpenAICompatible, Price, Provider, Simulated, VertexBatch
from data_gen.llm.chat import ChatReply
from data_gen.llm.pricing import PriceError, Prices, dollars, prices_version

FREE = Price(input=0.0, output=0.0)


@dataclass(frozen=True)
class Tiers:
    """USD per million tokens, for prompts of up to `long` tokens and for longer ones."""

    input: tuple[str, str]
    cached: tuple[str, str]
    output: tuple[str, str]
    long: int = 200_000

    def usd(self, tokens_in: int, tokens_out: int, cached: int) -> Decimal:
        way = tokens_in > self.long
        paid = Decimal(self.input[way]) * (tokens_in - cached) + Decimal(self.cached[way]) * cached
        return (paid + Decimal(self.output[way]) * tokens_out) / 1_000_000


TABLE = {
    "gemini-2.5-pro": Tiers(("1.25", "2.50"), ("0.125", "0.250"), ("10", "15")),
    "gemini-2.5-flash": Tiers(("0.30", "0.30"), ("0.03", "0.03"), ("2.50", "2.50")),
    "gemini-2.5-flash-lite": Tiers(("0.10", "0.10"), ("0.01", "0.01"), ("0.40", "0.40")),
    "gpt-4o-mini": Tiers(("0.15", "0.15"), ("0.075", "0.075"), ("0.60", "0.60")),
}
"""Written by hand from the providers' pages."""


def provider(model: str) -> Provider:
    return Gemini(model=model) if model.startswith("gemini") else OpenAICompatible(model=model)


def test_1000_random_requests_cost_what_a_table_made_by_hand_says_to_a_billionth() -> None:
    draws = random.Random(3)
    prices = {model: Prices(provider(model)) for model in TABLE}
    beyond = 0
    for _ in range(1000):
        model = draws.choice(list(TABLE))
        tokens_in = draws.choice([0, 1, 199_999, 200_000, 200_001, int(10 ** draws.uniform(0, 6))])
        cached = draws.choice([0, 0, tokens_in, draws.randint(0, tokens_in)])
        tokens_out = int(10 ** draws.uniform(0, 5)) - 1
        reply = ChatReply(
            text="x",
            finish_reason="stop",
            model="another-name-than-was-asked-for",
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cached_tokens=cached,
        )
        expected = TABLE[model].usd(tokens_in, tokens_out, cached)
        assert abs(Decimal(prices[model].price_of(reply, model=model)) - expected) < Decimal("1e-9")
        beyond += tokens_in > 200_000
    assert beyond > 100


def test_the_price_of_a_sum_is_not_the_sum_of_the_prices() -> None:
    prices = Prices(Gemini(model="gemini-2.5-pro"))
    one = prices.usd(model="gemini-2.5-pro", input_tokens=150_000, output_tokens=0)
    both = prices.usd(model="gemini-2.5-pro", input_tokens=300_000, output_tokens=0)
    assert both == pytest.approx(4 * one)


@pytest.mark.parametrize(
    ("of", "model"),
    [
        (Gemini(model="publishers/google/models/gemini-2.5-flash"), "publishers/google/models/gemini-2.5-flash"),
        (
            OpenAICompatible(
                model="google/gemini-2.5-flash",
                base_url="https://aiplatform.googleapis.com/v1/projects/p/locations/global/endpoints/openapi",
                credentials="google",
            ),
            "google/gemini-2.5-flash",
        ),
        (
            OpenAICompatible(model="google/gemini-2.5-flash", base_url="https://openrouter.ai/api/v1"),
            "google/gemini-2.5-flash",
        ),
    ],
)
def test_one_model_costs_the_same_by_each_of_its_names(of: Provider, model: str) -> None:
    usd = Prices(of).usd(model=model, input_tokens=1_000_000, output_tokens=1_000_000)
    assert usd == pytest.approx(2.8)


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "gemini-3.5-flash", "claude-sonnet-4-5"])
def test_a_batch_job_costs_half(model: str) -> None:
    """Whether the list has a price of its own for it (the first), or not, or lends the model from another list."""
    tokens = {"input_tokens": 250_000, "output_tokens": 1000}
    full = Prices(Gemini(model=model)).usd(model=model, **tokens)
    half = Prices(Gemini(model=model, batch=VertexBatch(bucket="gs://b"))).usd(model=model, **tokens)
    assert half == pytest.approx(full / 2)
    assert full > 0


def test_a_batch_job_costs_what_its_own_list_says_where_that_is_not_half() -> None:
    """Google lists batch prices; the cache, which online makes input cheaper, is not cheaper still in a batch."""
    tokens = {"input_tokens": 1000, "output_tokens": 10, "cached_tokens": 900}
    full = Prices(Gemini(model="gemini-2.5-pro")).usd(model="gemini-2.5-pro", **tokens)
    batch = Gemini(model="gemini-2.5-pro", batch=VertexBatch(bucket="gs://b"))
    assert Prices(batch).usd(model="gemini-2.5-pro", **tokens) > 0.6 * full


def test_a_price_of_the_config_goes_before_any_list() -> None:
    price = Price(input=2.0, output=8.0)
    online = OpenAICompatible(model="gpt-4o-mini", price=price)
    batch = OpenAICompatible(model="gpt-4o-mini", price=price, batch=OpenAIBatch())
    tokens = {"input_tokens": 500_000, "output_tokens": 250_000, "cached_tokens": 400_000}
    assert Prices(online).usd(model="gpt-4o-mini", **tokens) == pytest.approx(3.0)
    assert Prices(batch).usd(model="gpt-4o-mini", **tokens) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "of",
    [
        Gemini(model="gemini-of-next-year"),
        Gemini(model="gemma-3-27b-it"),  # listed, without prices
        Gemini(model="gemini-embedding-001"),  # writes no text
        OpenAICompatible(model="gpt-of-next-year"),
        OpenAICompatible(model="gpt-4o-mini", base_url="http://127.0.0.1:8000/v1"),
        OpenAICompatible(model="gpt-4o-mini", base_url="https://llm.example/v1"),
    ],
)
def test_an_unknown_price_is_refused_at_the_start_with_what_to_write(of: Provider) -> None:
    with pytest.raises(PriceError, match=r"judge\.price\.input=0\.1 .* 0 and 0 are right for a server of your own"):
        Prices(of, setting="judge")


def test_every_model_of_a_mixture_needs_a_price() -> None:
    of = OpenAICompatible(model="gpt-4o-mini")
    with pytest.raises(PriceError, match=r"nobody knows what gpt-of-next-year costs \(genai-prices \d"):
        Prices(of, models=["gpt-4.1-mini", "gpt-of-next-year"])
    assert Prices(of, models=["gpt-4.1-mini"]).usd(model="gpt-4.1-mini", input_tokens=1, output_tokens=1) > 0


def test_the_simulated_model_and_a_server_of_ones_own_cost_nothing() -> None:
    own = OpenAICompatible(model="m", base_url="http://127.0.0.1:8000/v1", price=FREE)
    for of in (Simulated(), own):
        assert Prices(of).usd(model="m", input_tokens=10**6, output_tokens=10**6) == 0.0


def test_more_cached_tokens_than_there_were_are_all_of_them() -> None:
    prices = Prices(Gemini(model="gemini-2.5-flash"))
    usd = prices.usd(model="gemini-2.5-flash", input_tokens=10, output_tokens=0, cached_tokens=20)
    assert usd == pytest.approx(10 * 0.03e-6)


def test_the_list_of_prices_has_a_version() -> None:
    assert prices_version().startswith("genai-prices 0.")


def test_prices_are_imported_only_by_those_who_use_them() -> None:
    program = "import sys, data_gen.llm.budget; sys.exit('genai_prices' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_small_amounts_are_shown_with_two_digits_that_count() -> None:
    shown = {
        0.0: "$0.00",
        1e-9: "<$0.000001",
        0.0000012: "$0.0000012",
        0.0031: "$0.0031",
        0.0999: "$0.100",
        0.1: "$0.10",
        1.005: "$1.00",
        20_000.0: "$20,000.00",
        1234567.891: "$1,234,567.89",
    }
    assert {usd: dollars(usd) for usd in shown} == shown
