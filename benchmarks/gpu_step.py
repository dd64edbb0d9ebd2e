"""A fine-tuning step on one GPU: its share of what the card multiplies, beside TRL's trainer with flash attention.

    python benchmarks/gpu_step.py --trl TRL/bin/python --cases 1B-2048 7B-2048

bf16 compute, float32 weights and AdamW moments, packed rows of four conversations, synthetic weights and
tokens. Every side of a case is a process of its own, one after another, and also measures what the card gives
to bare bf16 products; utilisation is model FLOPs (wizard_jax/model/flops.py; 4 P instead of 6 P with LoRA) over
that. `--trl` is an interpreter with torch, trl, peft and flash-attn, which hold other versions than ours;
without it there is no such side. A LoRA case trains rank 16 on every projection of both.

A 7B case needs about 120 GiB of GPU memory. `--steps` times as many steps after two that are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from wizard_jax.model.config import ModelConfig

CONVERSATIONS = 4
RATE = 1e-5
RANK = 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Size(NamedTuple):
    """A LLaMA; shape legend as in model/decoder.py."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int


SIZES = {
    "tiny": Size(512, 128, 2, 4, 2, 32, 256),  # to try the script on a CPU
    "1B": Size(32_000, 2_048, 22, 32, 4, 64, 5_632),
    "7B": Size(32_000, 4_096, 32, 32, 32, 128, 11_008),
}
TOKENS = {"tiny": 512, "1B": 16_384, "7B": 8_192}
"""In a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["1B-2048", "1B-4096", "7B-2048", "7B-4096", "7B-2048-lora"],
        help="SIZE-LENGTH or SIZE-LENGTH-lora; sizes: " + ", ".join(SIZES),
    )
    parser.add_argument("--trl", help="a Python that has trl")
    parser.add_argument("--trl-attention", default="flash_attention_2")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        size, length, *rest = arguments.cases[0].split("-")
        run = trl_side if arguments.side == "trl" else our_side
        print(json.dumps(run(size, int(length), lora="lora" in rest, arguments=arguments)), flush=True)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    from wizard_jax.progress import say, show_table

    rows = []
    for case in arguments.cases:
        flops = flops_per_token(case)
        own = measured(sys.executable, "ours", case, arguments)
        other = measured(arguments.trl, "trl", case, arguments) if arguments.trl else None
        for name, side in (("ours", own), ("TRL", other)):
            if side is None:
                continue
            rate = f"{side['products'] / 1e12:.0f}"
            use = f"{side['tokens_per_second'] * flops / side['products']:.2f}"
            ratio = f"{side['tokens_per_second'] / other['tokens_per_second']:.2f}" if other else ""
            memory = f"{side['peak_bytes'] / 2**30:.0f}"
            rows.append((case, name, f"{side['tokens_per_second']:,.0f}", rate, use, ratio, memory))
            say(json.dumps({"case": case, "side": name, **side}))
    head = ("case", "side", "tokens/s", "bare products, TFLOP/s", "utilisation", "speed, TRL = 1", "peak GiB")
    show_table(head, rows)


def flops_per_token(case: str) -> float:
    from wizard_jax.model.flops import token_flops

    size, length, *lora = case.split("-")
    counted = token_flops(model_config(SIZES[size], int(length)), seq_len=int(length))
    return counted.matrices * (2 / 3 if lora else 1) + counted.attention


def model_config(size: Size, length: int) -> ModelConfig:
    from wizard_jax.model.config import ModelConfig

    return ModelConfig(
        vocab_size=size.vocab,
        d_model=size.width,
        n_layers=size.layers,
        n_heads=size.heads,
        n_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        d_ff=size.feed_forward,
        max_positions=length,
        compute_dtype="bfloat16",
        remat="full",
    )


def measured(python: str, side: str, case: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What a process of its own prints last."""
    command = [python, __file__, "--side", side, "--cases", case, "--steps", str(arguments.steps)]
    command += ["--trl-attention", arguments.trl_attention]
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def our_side(name: str, length: int, *, lora: bool, arguments: argparse.Namespace) -> dict[str, float]:
    import jax

    from wizard_jax.model.lora import LoRA
    from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
    from wizard_jax.train.optimizer import AdamW
    from wizard_jax.train.step import HALT, make_steps

    size = SIZES[name]
    rows = TOKENS[name] // length
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tokens = np.random.default_rng(0).integers(3, size.vocab, (rows, length + 1), np.int32)
    columns = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(length, dtype=np.int32) % (length // CONVERSATIONS), (rows, 1)),
        "segment_ids": np.tile(1 + np.arange(length, dtype=np.int32) // (length // CONVERSATIONS), (rows, 1)),
        "loss_weights": np.ones((rows, length), np.float32),
        HALT: np.zeros(rows, np.int32),
    }
    adapter = LoRA(rank=RANK, alpha=2.0 * RANK) if lora else None
    with jax.set_mesh(mesh):
        optimizer = AdamW(peak_lr=RATE, schedule="constant")
        steps = make_steps(
            model_config(size, length),
            optimizer=optimizer,
            total_steps=1000,
            gradient_accumulation=1,
            mesh=mesh,
            adapter=adapter,
        )
        state = steps.init(jax.random.key(0))
        batch = jax.device_put(columns, batch_sharding(mesh))
        for timed in (False, True):
            began = time.perf_counter()
            for _ in range(arguments.steps if timed else 2):
                state, metrics = steps.train(state, batch)
            metrics.loss.block_until_ready()
    seconds = (time.perf_counter() - began) / arguments.steps
    del state
    statistics = jax.local_devices()[0].memory_stats() or {}
    return {
        "tokens_per_second": rows * length / seconds,
        "products": jax_products(),
        "peak_bytes": statistics.get("peak_bytes_in_use", 0),
    }


def jax_products(width: int = 8_192, times: int = 20) -> float:
    """FLOP/s of bare bf16 products."""
    import jax
    import jax.numpy as jnp

    width = width if jax.default_backend() != "cpu" else 512
    multiply = jax.jit(lambda a, b: a @ b)
    left = right = jnp.ones((width, width), jnp.bfloat16)
    multiply(left, right).block_until_ready()
    began = time.perf_counter()
    for _ in range(times):
        out = multiply(left, right)
    out.block_until_ready()
    return 2.0 * width**3 * times / (time.perf_counter() - began)


def trl_side(name: str, length: int, *, lora: bool, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs where nothing of ours is: no import of this project."""
    import datasets
    import torch
    import transformers
    import trl
    from peft import LoraConfig

    size = SIZES[name]
    has_gpu = torch.cuda.is_available()
    config = transformers.LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=length,
        use_cache=False,
        attn_implementation=arguments.trl_attention,
    )
    if has_gpu:
        torch.set_default_device("cuda")
    model = transformers.LlamaForCausalLM(config)
    torch.set_default_device("cpu")
    rows = TOKENS[name] // length
    count = rows * CONVERSATIONS * (arguments.steps + 2)
    tokens = np.random.default_rng(0).integers(3, size.vocab, (count, length // CONVERSATIONS))
    clock = Clock()
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=os.path.join(os.environ.get("TMPDIR", "/tmp"), "trl"),
            per_device_train_batch_size=rows,
            max_steps=arguments.steps + 2,
            max_length=length,
            packing=True,
            bf16=has_gpu,
            use_cpu=not has_gpu,
            gradient_checkpointing=True,
            optim="adamw_torch_fused" if has_gpu else "adamw_torch",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1_000,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_dict({"input_ids": tokens.tolist()}),
        processing_class=tokenizer(size.vocab),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(PROJECTIONS)) if lora else None,
        callbacks=[clock.callback(transformers)],
    )
    trainer.train()
    seconds = (clock.ends[-1] - clock.ends[1]) / arguments.steps
    return {
        "tokens_per_second": rows * length / seconds,
        "products": torch_products(has_gpu),
        "peak_bytes": torch.cuda.max_memory_allocated() if has_gpu else 0,
    }


class Clock:
    """When each step ended, on the device."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def callback(self, transformers: Any) -> Any:
        import torch

        ends = self.ends

        class _Ends(transformers.TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        return _Ends()


def tokenizer(vocab: int) -> Any:
    """One that the trainer can hold; the rows are token ids already."""
    import tokenizers
    import transformers

    words = {f"w{number}": number for number in range(vocab)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w2"
    )


def torch_products(has_gpu: bool, times: int = 20) -> float:
    """FLOP/s of bare bf16 products."""
    import torch

    width = 8_192 if has_gpu else 512
    left = torch.ones((width, width), dtype=torch.bfloat16, device="cuda" if has_gpu else "cpu")
    out = left @ left
    if has_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        out = left @ left
    if has_gpu:
        torch.cuda.synchronize()
    del out
    return 2.0 * width**3 * times / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
