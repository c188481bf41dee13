"""Memory Caching once more: plain numpy loops, one token of one head at a time.

A second derivation, from the paper's equations alone, that shares no code and no trick with the
package. A state is never updated in place: `Compressor.state(first, end)` *is* the recurrence run
over the tokens [first, end) from the initial memory, so that "the memory of this segment" means
the same thing for the online memory, a cached one and a logarithmic bucket.

A memory is a dict of arrays: {"w": [d, d]} reads W x; {"w1": [d, h], "w2": [h, d]} reads
x + norm(W1 act(W2 x)). Everything is float64.
"""

import math
from typing import NamedTuple

import numpy as np

LAYER_NORM_EPS = 1e-6


class Head(NamedTuple):
    """What one head of one sequence sees; gates is a dict of [L] (swla's beta: [L, c-1])."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    u: np.ndarray | None
    gates: dict
    weights: dict
    norm: tuple | None


class State(NamedTuple):
    """The recurrence after a token. read: W_t; weights: W_t as the next token finds it."""

    read: dict
    weights: dict
    momentum: dict


class Cached(NamedTuple):
    """A cached memory of the tokens [first, end), its pooled keys, and its place from here."""

    first: int
    end: int
    weights: dict
    descriptor: np.ndarray
    distance: int


class Final(NamedTuple):
    """Where one head stands after the last token, and what the next token would find cached."""

    weights: dict
    momentum: dict
    cached: list


# The memory: forward, and its gradient by the chain rule.


def _phi(a):
    return 0.5 * (1.0 + math.erf(a / math.sqrt(2.0)))


def activate(name, a):
    """The activation and its derivative at every entry of the vector a."""
    value, slope = np.zeros_like(a), np.zeros_like(a)
    for i, x in enumerate(a):
        if name == "gelu":
            value[i] = x * _phi(x)
            slope[i] = _phi(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        elif name == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            d_inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
            value[i] = 0.5 * x * (1 + math.tanh(inner))
            slope[i] = 0.5 * (1 + math.tanh(inner)) + 0.5 * x * d_inner / math.cosh(inner) ** 2
        elif name == "silu":
            gate = 1 / (1 + math.exp(-x))
            value[i] = x * gate
            slope[i] = gate + x * gate * (1 - gate)
        elif name == "relu":
            value[i] = max(x, 0.0)
            slope[i] = 1.0 if x > 0 else 0.0
        else:
            raise ValueError(name)
    return value, slope


def read_memory(weights, x, norm=None, activation="gelu"):
    """M(x) for one token x [d]."""
    if "w" in weights:
        return weights["w"] @ x
    hidden, _ = activate(activation, weights["w2"] @ x)
    y = weights["w1"] @ hidden
    if norm is None:
        return x + y
    scale, bias = norm
    deviation = y - y.mean()
    return x + scale * deviation / math.sqrt((deviation**2).mean() + LAYER_NORM_EPS) + bias


def loss_gradient(weights, k, v, loss, norm=None, activation="gelu"):
    """Gradient with respect to the weights of "dot": -<M(k), v>, or "square": |M(k) - v|^2."""
    prediction = read_memory(weights, k, norm, activation)
    d_prediction = -v if loss == "dot" else 2.0 * (prediction - v)
    if "w" in weights:
        return {"w": np.outer(d_prediction, k)}
    hidden, slope = activate(activation, weights["w2"] @ k)
    y = weights["w1"] @ hidden
    if norm is None:
        d_y = d_prediction
    else:
        scale, _ = norm
        sigma = math.sqrt(y.var() + LAYER_NORM_EPS)
        y_hat = (y - y.mean()) / sigma
        d_hat = d_prediction * scale
        d_y = (d_hat - d_hat.mean() - y_hat * (d_hat * y_hat).mean()) / sigma
    d_hidden = weights["w1"].T @ d_y
    return {"w1": np.outer(d_y, hidden), "w2": np.outer(d_hidden * slope, k)}


def _rescale_rows(weights, initial):
    """Every row back to the norm that it had in the initial weights (mem_norm="weight_l2")."""
    result = {}
    for name, w in weights.items():
        result[name] = np.zeros_like(w)
        for row in range(w.shape[0]):
            before = np.linalg.norm(initial[name][row])
            result[name][row] = w[row] * before / np.linalg.norm(w[row])
    return result


# The update rules.


class Compressor:
    """The recurrence of one head, from the initial memory, over any range of its tokens."""

    def __init__(self, head, rule, chunk_len, mem_norm, activation):
        self.head, self.rule, self.chunk_len = head, rule, chunk_len
        self.mem_norm, self.activation = mem_norm, activation
        self._known = {}

    def state(self, first, end):
        """After the tokens [first, end), the run having begun at first."""
        if (first, end) not in self._known:
            self._known[first, end] = self._compute(first, end)
        return self._known[first, end]

    def _compute(self, first, end):
        initial = self.head.weights
        if first == end:
            zeros = {name: np.zeros_like(w) for name, w in initial.items()}
            return State(initial, initial, zeros)
        t = end - 1
        before = self.state(first, t)
        read, momentum = self._step(before, first, t)
        chunk_complete = (end - first) % self.chunk_len == 0
        weights = read
        if self.mem_norm == "weight_l2" and chunk_complete:
            weights = _rescale_rows(read, initial)
        return State(read, weights, momentum)

    def _step(self, before, first, t):
        """W_t and S_t from W_{t-1} and S_{t-1}."""
        head, g = self.head, self.head.gates
        if self.rule == "linear":
            alpha = g["alpha"][t] if "alpha" in g else 1.0
            w = alpha * before.weights["w"] + np.outer(head.v[t], head.k[t])
            return {"w": w}, before.momentum
        if self.rule == "swla":
            w = g["alpha"][t] * before.weights["w"]
            w = w + g["lam"][t] * np.outer(head.v[t], head.k[t])
            for back in range(1, g["beta"].shape[1] + 1):
                if t - back >= first:
                    w = w + g["beta"][t, back - 1] * np.outer(head.v[t - back], head.k[t - back])
            return {"w": w}, before.momentum
        chunk_start = first + (t - first) // self.chunk_len * self.chunk_len
        gradient = loss_gradient(
            self.state(first, chunk_start).weights,
            head.k[t],
            head.v[t],
            "dot" if self.rule == "dla" else "square",
            head.norm,
            self.activation,
        )
        read, momentum = {}, {}
        for name in gradient:
            alpha = g["alpha"][t] if "alpha" in g else 1.0
            if self.rule == "dla":
                momentum[name] = before.momentum[name]
                read[name] = alpha * before.weights[name] - g["eta"][t] * gradient[name]
            else:
                momentum[name] = g["beta"][t] * before.momentum[name] - g["eta"][t] * gradient[name]
                read[name] = alpha * before.weights[name] + momentum[name]
        return read, momentum


# Segments.


def binary_buckets(completed):
    """Base segments [first, end) of the Fenwick buckets of a prefix of `completed` segments."""
    buckets, first = [], 0
    for level in reversed(range(completed.bit_length())):
        if completed >> level & 1:
            buckets.append((first, first + 2**level, level))
            first += 2**level
    return buckets


def _bucket_weights(compressor, first, end, segment_len, write_mode):
    """The memory of the base segments [first, end)."""
    if write_mode == "checkpoint":
        return compressor.state(0, end * segment_len).weights
    if compressor.rule in ("dla", "titans"):
        return compressor.state(first * segment_len, end * segment_len).weights
    gates, total = compressor.head.gates, 0.0
    for i in range(first, end):
        decay = 1.0
        for t in range((i + 1) * segment_len, end * segment_len):
            decay *= gates["alpha"][t] if "alpha" in gates else 1.0
        segment = compressor.state(i * segment_len, (i + 1) * segment_len)
        total = total + decay * segment.weights["w"]
    return {"w": total}


def _mean(pooled, first, end):
    total = np.zeros_like(pooled[0])
    for t in range(first, end):
        total = total + pooled[t]
    return total / (end - first)


def cached_memories(compressor, pooled, completed, segment_len, segmentation, write_mode):
    """What a token sees cached when `completed` segments lie behind it, earliest first.

    `pooled` [length, head_dim] is what descriptors are means of.
    """
    if segmentation == "constant":
        ranges = [(i, i + 1, completed - i) for i in range(completed)]
    else:
        ranges = [(i, j, 1 + level) for i, j, level in binary_buckets(completed)]
    return [
        Cached(
            i * segment_len,
            j * segment_len,
            _bucket_weights(compressor, i, j, segment_len, write_mode),
            _mean(pooled, i * segment_len, j * segment_len),
            distance,
        )
        for i, j, distance in ranges
    ]


# Gates and aggregations.


def gate_logits(head, t, gate, descriptors, distances):
    """One logit per visible memory; the online one comes last, with distance 0."""
    logits = []
    for descriptor, distance in zip(descriptors, distances, strict=True):
        if gate == "context":
            logits.append(float(head.u[t] @ descriptor))
        elif gate == "shared_query":
            temperature = 1.0 if head.u is None else float(head.u)
            logits.append(temperature * float(head.q[t] @ descriptor))
        elif gate == "position":
            places = head.u.shape[1]
            logits.append(float(head.u[t, min(distance, places - 1)]))
        else:
            raise ValueError(gate)
    return logits


def softmax(logits):
    """exp(r_i) / sum_j exp(r_j)."""
    highest = max(logits)
    powers = [math.exp(r - highest) for r in logits]
    return [p / sum(powers) for p in powers]


def _token(
    head, t, leader, online, online_descriptor, cached, aggregation, gate, top_k, activation
):
    """y_t; the token `leader` selects for it."""
    memories = [c.weights for c in cached] + [online]
    if aggregation in ("none", "residual") or gate == "none":
        gammas = [1.0] * len(memories)
    else:
        descriptors = [c.descriptor for c in cached] + [online_descriptor]
        distances = [c.distance for c in cached] + [0]
        logits = gate_logits(head, t, gate, descriptors, distances)
        chosen = list(range(len(memories)))
        if aggregation == "ssc":
            ranks = gate_logits(head, leader, gate, descriptors, distances)
            by_score = sorted(range(len(cached)), key=lambda i: -ranks[i])
            chosen = by_score[:top_k] + [len(cached)]
        memories = [memories[i] for i in chosen]
        gammas = softmax([logits[i] for i in chosen])
    if aggregation == "soup":
        mixed = {}
        for name in online:
            mixed[name] = sum(g * m[name] for g, m in zip(gammas, memories, strict=True))
        return read_memory(mixed, head.q[t], head.norm, activation)
    return sum(
        g * read_memory(m, head.q[t], head.norm, activation)
        for g, m in zip(gammas, memories, strict=True)
    )


def _one_head(
    head,
    *,
    rule,
    aggregation,
    segment_len,
    segmentation,
    write_mode,
    gate,
    top_k,
    chunk_len,
    pooled,
    route_every,
    mem_norm,
    activation,
):
    length = head.q.shape[0]
    compressor = Compressor(head, rule, chunk_len, mem_norm, activation)
    descriptive = {"keys": head.k, "values": head.v}[pooled]
    out = np.zeros_like(head.q)

    def run_start(t):
        restarts = aggregation != "none" and write_mode == "independent"
        return t // segment_len * segment_len if restarts else 0

    def visible(completed):
        if aggregation == "none":
            return []
        return cached_memories(
            compressor, descriptive, completed, segment_len, segmentation, write_mode
        )

    for t in range(length):
        completed = t // segment_len
        online = compressor.state(run_start(t), t + 1).read
        descriptor = _mean(descriptive, completed * segment_len, t + 1)
        out[t] = _token(
            *(head, t, t - t % route_every, online, descriptor, visible(completed)),
            *(aggregation, gate, top_k, activation),
        )
    end = compressor.state(run_start(length - 1), length)
    return out, Final(end.weights, end.momentum, visible(length // segment_len))


def _float64(x):
    return None if x is None else np.asarray(x, np.float64)


def naive_memory_caching(
    q,
    k,
    v,
    u=None,
    gates=None,
    params=None,
    *,
    rule="linear",
    aggregation="grm",
    segment_len=256,
    segmentation="constant",
    write_mode="independent",
    gate="context",
    top_k=4,
    chunk_len=64,
    pooled="keys",
    route_every=1,
    mem_norm="layer",
    activation="gelu",
):
    """`mc_jax.memory_caching` by loops: (out [B, L, H, d], [B][H] of `Final`).

    Takes what the package takes (rule "dla" without params: a matrix memory, the paper's
    one-layer case); gates and params are read by their field names only.
    """
    q, k, v, u = _float64(q), _float64(k), _float64(v), _float64(u)
    batch, _, heads, dim = q.shape
    fields = {} if gates is None else gates._asdict()
    fields = {name: _float64(g) for name, g in fields.items() if g is not None}
    if rule == "swla" and fields["beta"].ndim == 3:
        fields["beta"] = fields["beta"][..., None]
    out, final = np.zeros_like(v), []
    for b in range(batch):
        final.append([])
        for h in range(heads):
            if params is None:
                weights, norm = {"w": np.zeros((dim, dim))}, None
            else:
                weights = {"w1": _float64(params.w1)[h], "w2": _float64(params.w2)[h]}
                norm = None
                if mem_norm == "layer":
                    norm = (_float64(params.norm.scale)[h], _float64(params.norm.bias)[h])
            head_u = u
            if u is not None:
                head_u = u[h] if gate == "shared_query" else u[b, :, h]
            head = Head(
                q[b, :, h],
                k[b, :, h],
                v[b, :, h],
                head_u,
                {name: g[b, :, h] for name, g in fields.items()},
                weights,
                norm,
            )
            out[b, :, h], end = _one_head(
                head,
                rule=rule,
                aggregation=aggregation,
                segment_len=segment_len,
                segmentation=segmentation,
                write_mode=write_mode,
                gate=gate,
                top_k=top_k,
                chunk_len=chunk_len,
                pooled=pooled,
                route_every=route_every,
                mem_norm=mem_norm,
                activation=activation,
            )
            final[b].append(end)
    return out, final
