"""The progress bar: loss, bits per byte or recall, speed, utilisation, time left."""

import sys
import time
from collections.abc import Mapping

import jax
from tqdm import tqdm

from mc_jax.training import hosts
from mc_jax.training.experiment import Experiment

# Peak dense bf16 FLOP/s of a device, by the start of its `device_kind`.
_PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak dense bf16 FLOP/s of a device; None where it is not known."""
    kinds = [kind for kind in _PEAK_FLOPS if device.device_kind.startswith(kind)]
    return _PEAK_FLOPS[max(kinds, key=len)] if kinds else None


class Progress:
    """A bar on stderr, with the numbers of the last step and the present speed."""

    def __init__(self, experiment: Experiment, start: int):
        """Show the bar of an experiment of which `start` steps are done."""
        self._tokens, self._flops, self._text = experiment.tokens, experiment.flops, experiment.text
        peak = peak_flops(jax.devices()[0])
        self._peak = peak and peak * jax.device_count()
        self._bar = tqdm(
            initial=start,
            total=experiment.train.steps,
            desc="compiling",
            unit="step",
            dynamic_ncols=True,
            # In a log file a bar is a line each time.
            mininterval=0.2 if sys.stderr.isatty() else 20,
            disable=not hosts.is_first(),
        )
        self._seconds: float | None = None  # of a step, smoothed; unknown during the first one
        self._previous: float | None = None

    def update(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Count a step and show its numbers.

        Returns:
          The speed: `tokens_per_second`, and `mfu` (model FLOPs over the devices' peak) where the
          peak is known; nothing before two steps can be compared.
        """
        now = time.perf_counter()
        if self._previous is not None:
            elapsed = now - self._previous
            self._seconds = (
                elapsed if self._seconds is None else 0.9 * self._seconds + 0.1 * elapsed
            )
        self._previous = now
        speed = self._speed()
        self._bar.set_description("training", refresh=False)
        self._bar.set_postfix_str(self._summary({**metrics, **speed}), refresh=False)
        self._bar.update()
        return speed

    def pause(self) -> None:
        """Leave out of the speed what was done since the last step, such as an evaluation."""
        self._previous = None

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if hosts.is_first():
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Finish the bar."""
        self._bar.close()

    def _speed(self) -> dict[str, float]:
        if self._seconds is None:
            return {}
        speed = {"tokens_per_second": self._tokens / self._seconds}
        if self._peak:
            speed["mfu"] = self._flops / self._seconds / self._peak
        return speed

    def _summary(self, numbers: dict[str, float]) -> str:
        parts = [describe(numbers, self._text)]
        if "tokens_per_second" in numbers:
            parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in numbers:
            parts.append(f"MFU {numbers['mfu']:.1%}")
        return ", ".join(parts)


def describe(metrics: Mapping[str, float], text: bool) -> str:
    """The loss, and the bits per byte of text or the recall of a task, for people."""
    if text:
        return f"loss {metrics['loss']:.4f}, {metrics['bits_per_byte']:.3f} bits/byte"
    return f"loss {metrics['loss']:.4f}, recall {metrics['accuracy']:.3f}"
