"""How adapters are merged: on which device, and one after another or combined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

from packager.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]

# PEFT's `combination_type`s, and the beginnings of those that prune.
METHODS = (
    "svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd",
    "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
_PRUNING = ("ties", "dare", "magnitude")


@dataclass(frozen=True)
class Combination:
    """How several adapters become one.

    Attributes:
        method: PEFT's `combination_type`.
        weights: one for each adapter; empty for 1 each.
        density: the fraction of the values that is kept; only for methods that prune.
        seed: torch's seed, set before a method that prunes at random.
    """

    method: str
    weights: tuple[float, ...] = ()
    density: float | None = None
    seed: int = 0

    @overload
    @classmethod
    def parse(
        cls, method: str, weights: Sequence[float], density: float | None, seed: int
    ) -> Combination: ...

    @overload
    @classmethod
    def parse(
        cls, method: None, weights: Sequence[float], density: float | None, seed: int
    ) -> None: ...

    @classmethod
    def parse(
        cls, method: str | None, weights: Sequence[float], density: float | None, seed: int
    ) -> Combination | None:
        """The combination that `--combine` and its options ask for; None without `--combine`.

        `require_fits` checks the rest once the number of adapters is known.

        Raises:
            UsageError: naming the value that is wrong, and those that are allowed.
        """
        if method is None:
            _require_no_weights(weights, density)
            return None
        if method not in METHODS:
            raise UsageError(
                f"--combine {method!r} is not one of PEFT's methods: {', '.join(METHODS)}.",
                next_step="Choose one of these, or omit --combine to merge one after another.",
            )
        wrong = [weight for weight in weights if not math.isfinite(weight)]
        if wrong:
            raise UsageError(
                f"--weight {wrong[0]} is not a finite number.",
                next_step="Give a number such as 0.5.",
            )
        _require_density(method, density)
        return cls(method, tuple(weights), density, seed)

    def require_fits(self, adapters: int) -> None:
        """Check the combination against the number of adapters.

        Raises:
            UsageError: if there are fewer than two adapters, or not one weight for each.
        """
        if adapters < 2:
            raise UsageError(
                f"--combine {self.method} needs two adapters or more; it is given for {adapters}.",
                next_step="Name the others with --adapter PATH.",
            )
        if self.weights and len(self.weights) != adapters:
            raise UsageError(
                f"--weight is given {len(self.weights)} times for {adapters} adapters.",
                next_step="Give one for each, in the order of the adapters, or none for 1 each.",
            )

    def weights_for(self, adapters: int) -> tuple[float, ...]:
        """The weight of each of so many adapters."""
        return self.weights or (1.0,) * adapters

    def describe(self, adapters: int) -> str:
        """The combination of so many adapters in words, for the manifest."""
        weights = ", ".join(f"{weight:g}" for weight in self.weights_for(adapters))
        text = f"{self.method}, weights {weights}"
        if self.density is not None:
            text += f", density {self.density:g}"
        return text + (f", seed {self.seed}" if self.method.startswith("dare") else "")


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How to merge adapters into their base.

    Attributes:
        device: where to merge; `auto` is a GPU where torch finds one.
        combination: how the adapters become one; None to merge them one after another.
    """

    device: Device = "auto"
    combination: Combination | None = None


def _require_no_weights(weights: Sequence[float], density: float | None) -> None:
    if weights or density is not None:
        option = "--weight" if weights else "--density"
        raise UsageError(
            f"{option} is given without --combine, and adapters that are merged one after another "
            "have no weights.",
            next_step=f"Add a method, such as --combine linear, or omit {option}.",
        )


def _require_density(method: str, density: float | None) -> None:
    is_pruning = method.startswith(_PRUNING)
    if is_pruning and (density is None or not 0 < density <= 1):
        raise UsageError(
            f"--combine {method} keeps a fraction of the values, and --density is "
            f"{'not given' if density is None else density}.",
            next_step="Set --density to a number above 0 and up to 1, such as 0.5.",
        )
    if density is not None and not is_pruning:
        raise UsageError(
            f"--density is given, but --combine {method} prunes nothing.",
            next_step="Omit --density, or choose ties, dare_linear, dare_ties or magnitude_prune.",
        )
