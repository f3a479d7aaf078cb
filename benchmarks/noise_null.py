"""Copies of a model with nothing but noise in their weights: what a comparison of two models finds without a cause.

    python benchmarks/noise_null.py --copies 5 --output_dir results/noise
    for i in 1 2 3 4 5; do python probe_logit_lens.py --model results/noise/copy-$i --output_dir results/noise-$i; done
    python compare_runs.py results/BASE results/TUNED --null results/noise-*

To each matrix of weights is added normal noise of --scale times that matrix's own standard deviation. A copy is as
large as the model (Gemma 3 270M: 1.1 GB in float32).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from utils.models.loading import load_model


@torch.no_grad()
def add_noise(model: torch.nn.Module, scale: float, seed: int) -> None:
    """Noise in every matrix, in place, each of a pair that shares its weights once; vectors (norms, biases) stay."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=scale * float(parameter.float().std()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--scale", type=float, default=0.02)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    for number in range(1, args.copies + 1):
        loaded = load_model(args.model)  # anew: noise is added to the model itself, never to a copy with noise
        add_noise(loaded.causal_lm, args.scale, number)
        folder = args.output_dir / f"copy-{number}"
        loaded.causal_lm.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        print(folder)


if __name__ == "__main__":
    main()
