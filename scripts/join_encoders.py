"""Put tuned networks into one file: ``python scripts/join_encoders.py FILE FILE --output FILE``.

`showtell tune encoder=joined` tunes its networks one after the other. Tuned each by itself, on
several cores or machines, they take the time of one, and need not be tuned alike. What comes out is
for ``encoder=joined``, its ``encoder.networks`` in the order of the files:

    showtell tune encoder=efficientnet_lite1 encoder.preprocessing.size=260 --output one.safetensors
    showtell tune encoder=efficientnet_lite2 --output two.safetensors
    python scripts/join_encoders.py one.safetensors two.safetensors --output both.safetensors
    python train.py encoder=joined encoder.weights=both.safetensors ...
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.training.tuning import TUNED_BY
from showtell.vision.weights import facts_of, load_state


def join(files: Sequence[Path], output: Path) -> None:
    """Write the weights of all ``files``, and how each was tuned, to ``output``.

    Raises:
        UserError: fewer than two files, one that is not of ``showtell tune`` for a single network,
            or an ``output`` that exists.
    """
    if len(files) < 2:
        raise UserError("one file alone is encoder.weights as it is: name at least two")
    if output.suffix != ".safetensors" or output.exists():
        raise UserError(f"--output {output}: name a .safetensors file that does not exist yet")
    weights: dict[str, Tensor] = {}
    tuned_by = []
    for number, file in enumerate(files):
        state, facts = load_state(file), facts_of(file)
        if TUNED_BY not in facts or any(name.startswith("networks.") for name in state):
            raise UserError(f"{file}: not a single network as `showtell tune` writes it")
        weights |= {f"networks.{number}.{name}": tensor for name, tensor in state.items()}
        tuned_by.append(json.loads(facts[TUNED_BY]))
    write_atomically(output, save(weights, metadata={TUNED_BY: json.dumps(tuned_by)}))


def main() -> None:
    """Join, or say in one sentence why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    try:
        join(options.files, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"weights: {options.output}")


if __name__ == "__main__":
    main()
