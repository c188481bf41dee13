"""A plan for people, and what to change where it does not fit."""

from mc_jax.model import ModelConfig
from mc_jax.planning.plan import Plan
from mc_jax.training.experiment import Experiment

GIB = 2**30
DAY = 86400
# Memory that a run should leave free: what the plan cannot see, such as checkpoints on their way.
COMFORT = 0.1


def describe(plan: Plan, experiment: Experiment) -> str:
    """The plan as text."""
    axes = " ".join(f"{name}={size}" for name, size in plan.mesh.items())
    lines = [
        f"{plan.params / 1e9:.2f}B parameters on {plan.devices} x TPU {plan.chip} "
        f"({plan.topology}); mesh {axes}",
        f"{plan.tokens:,} tokens a step: {experiment.config.data.batch_size} sequences of "
        f"{experiment.config.data.length:,}",
        "",
        "memory of a device, GiB",
    ]
    for name, size in plan.memory.items():
        lines.append(f"  {name:<12}{size / GIB:9.2f}")
        if name == "temporaries":
            lines[-1] += f"  of them activations, at the most {plan.activations / GIB:.2f}"
    verdict = f"fits, {plan.free:.0%} free" if plan.fits else "DOES NOT FIT"
    lines += [f"  {'HBM':<12}{plan.hbm / GIB:9.2f}  {verdict}", ""]
    if plan.collectives:
        lines += ["exchanges of a step: number, GiB that a device sends"]
        lines += [
            f"  {kind:<20}{number:6}{sent / GIB:9.2f}"
            for kind, (number, sent) in plan.collectives.items()
        ]
        lines.append("")
    if plan.fits:
        lines += _time(plan)
    lines += advice(plan, experiment)
    return "\n".join(lines)


def _time(plan: Plan) -> list[str]:
    """Time of a step and of the experiment."""
    names = ("compute", "state", "network")
    limits = [f"{name} {_seconds(plan.seconds[name])}" for name in names]
    compiled, least = plan.seconds["compiled"], plan.least_seconds
    lines = [
        f"FLOPs of a step: {plan.flops['model']:.3g} (model), "
        f"{plan.flops['hardware']:.3g} with what is computed again",
        f"time of a step at the hardware's limits: {', '.join(limits)}",
    ]
    if compiled is not None:
        lines.append(
            f"the compiler's estimate for its own part (without kernels and exchanges): "
            f"{compiled:.3f} s"
        )
    days = plan.steps * least / DAY
    lines += [
        f"at best {plan.tokens / least:,.0f} tokens/s, {plan.tokens / least * DAY / 1e9:,.0f}B a "
        f"day; the {plan.steps:,} steps ({plan.steps * plan.tokens / 1e9:,.0f}B tokens) take "
        f"{days:.1f} days, and {2 * days:.1f} at half of that speed",
    ]
    return lines


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"


def advice(plan: Plan, experiment: Experiment) -> list[str]:
    """What to change to fit, or to leave some memory free; the cheapest first."""
    if plan.free >= COMFORT:
        return []
    model, train, config = experiment.model, experiment.train, experiment.config
    found = []
    if not model.scan_layers:
        found.append("--config.model.scan_layers=True: one layer's temporaries at a time")
    if model.remat != "full":
        found.append("--config.model.remat=full: keeps one activation a layer")
    if plan.mesh["data"] > 1:
        moved = f"--config.mesh.data=1 --config.mesh.fsdp={plan.mesh['data'] * plan.mesh['fsdp']}"
        found.append(f"{moved}: splits parameters and optimizer over the copies")
    rows = config.data.batch_size // (train.grad_accum * plan.mesh["data"] * plan.mesh["fsdp"])
    if rows % 2 == 0:
        found.append(f"--config.train.grad_accum={2 * train.grad_accum}: half as much at a time")
    found += _exchange(model, plan)
    found.append("more devices in --topology")
    head = "to fit" if not plan.fits else f"less than {COMFORT:.0%} is free; to leave more"
    return [f"{head}:", *(f"  {line}" for line in found)]


def _exchange(model: ModelConfig, plan: Plan) -> list[str]:
    if set(model.pattern) != {"memory"}:
        return []  # attention does not reach over devices
    if plan.mesh["context"] > 1:
        constant = model.memory.segmentation == "constant"
        if model.memory.exchange == "gather" and constant:
            ring = "--config.model.memory.exchange=ring: no device holds all memories of a layer"
            return [ring]
        return []
    return ["--config.mesh.context=N: sequences shared by N devices"]
