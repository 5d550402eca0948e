# SPDX-License-Identifier: Apache-2.0
"""What is measured: each suite is a list of cases, made one after the other since their matrices are large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import gossamer as gs
from gossamer import _core
from gossamer.benchmarks import minilm
from gossamer.benchmarks.measuring import Array, Contestant, Job, Reader, WrongAnswerError, exact_product, near
from gossamer.benchmarks.peers import Peer, Problem, as_tensor, load, torch_rows
from gossamer.benchmarks.targets import SPARSITIES
from gossamer.scoring import gather_inputs
from gossamer.selection import select as select_masks
from gossamer.training import losses, model, optimizers, steps

Shape = tuple[int, int]


class Sizes(NamedTuple):
    square: Shape
    tall: Shape  # for one column: no cache holds it
    select: tuple[Shape, ...]
    columns: tuple[int, ...]
    structured: tuple[int, ...]  # columns of x for N:M and vectors
    sparsities: tuple[float, ...]
    batch: int
    layers: int  # a divisor of MiniLM's widths

    @property
    def memory(self) -> int:
        """Bytes of the read that gives the limit."""
        return 4 * self.tall[0] * self.tall[1]


FULL = Sizes(
    (4096, 4096), (11008, 8192), ((4096, 4096), (4096, 11008)), (512, 128, 32, 8), (512, 128), SPARSITIES, 256, 1
)
QUICK = Sizes((64, 96), (96, 128), ((64, 96),), (8,), (8,), (0.5, 0.9), 8, 8)


@dataclass
class Setting:
    """What a suite may use."""

    sizes: Sizes
    threads: int
    peers: Mapping[str, Peer]
    model: Path | None = None

    @property
    def torch(self) -> Any:
        return load("torch") if "torch" in self.peers else None


@dataclass
class Case:
    """One row: contestants of one answer, the first of them "gossamer", and what the row is about.

    ``flops`` count the non-zeros, a multiply-add as two; ``nbytes`` are those that a call cannot avoid to move.
    """

    name: str
    contestants: list[Contestant]
    facts: dict[str, Any]
    flops: float = 0
    nbytes: float = 0
    notes: list[str] = field(default_factory=list)


Plan = tuple[str, Callable[[], Case]]


# --------------------------------------------------------------------------------------------------------------- inputs


@lru_cache(maxsize=4)
def normal(shape: Shape, seed: int = 0) -> Array:
    """Standard normal float32 values, shared: nobody writes to them."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values.flags.writeable = False
    return values


@lru_cache(maxsize=2)
def pruned(shape: Shape, sparsity: float, pattern: str = "element") -> tuple[Array, gs.Mask]:
    w, mask = gs.prune(normal(shape), sparsity=sparsity, pattern=pattern)
    return np.asarray(w), mask


def mask_of(
    weights: Array,
    grads: Array | None = None,
    *,
    nnz: int,
    method: str = "magnitude",
    stats: gs.Stats | None = None,
    group: str = "tensor",
) -> gs.Mask:
    """What ``gs.prune`` does before it writes weights: the mask straight from the weights, no scores in memory."""
    inputs = gather_inputs(weights, grads, method, stats, None, "prune")
    masks: Mapping[str, gs.Mask] = select_masks(
        inputs,
        [w.shape for w in inputs.weights],
        [],
        "prune",
        sparsity=None,
        nnz=nnz,
        threshold=None,
        pattern="element",
        group=group,
        min_density=0.0,
        priors=dict.fromkeys(inputs.names),
        nan="raise",
    )
    return masks[""]


# ------------------------------------------------------------------------------------------------------------- products


def product(
    setting: Setting,
    name: str,
    w: Array,
    a: gs.SparseMatrix,
    x: Array,
    *,
    layer: bool = False,
    peers: Mapping[str, Peer] | None = None,
    job: Job | None = None,
    **facts: Any,
) -> Case:
    """The product of `a` beside those of the peers with `w`, the same values as float32 and zeros where pruned."""
    problem = Problem(w, x, layer, setting.threads)
    truth = exact_product(w, problem.columns())
    check = near(truth.T if layer else truth)
    out = problem.out()
    ours = job or (partial(gs.linear, x, a, out=out) if layer else partial(gs.matmul, a, x, out=out))
    contestants = [Contestant("gossamer", "gossamer", ours, check)]
    chosen = setting.peers if peers is None else peers
    contestants += [Contestant(key, peer.kind, peer.job(problem), check) for key, peer in chosen.items()]
    form = a._plan.kernel(problem.n)
    stored = a.nnz * a.dtype.itemsize + structure_bytes(a, form)
    known = {
        "shape": list(w.shape),
        "n": problem.n,
        "sparsity": 0.0,
        "dtype": str(a.dtype),
        "format": form,
        "plan": a.plan,
    }
    return Case(name, contestants, known | facts, 2.0 * a.nnz * problem.n, stored + x.nbytes + out.nbytes)


def structure_bytes(a: gs.SparseMatrix, form: str) -> int:
    """Beside the values: a bit a weight, or what the format holds by rule of thumb where it does not say."""
    if form == "bitmask":
        return int(a.mask.packed.nbytes)
    if form == "csr":
        return 4 * a.nnz + 8 * (a.shape[0] + 1)
    return a.nnz if form == "panel" else 4 * (a.shape[0] * a.shape[1] - a.nnz)


def spmm(setting: Setting) -> list[Plan]:
    """A float32 matrix pruned by magnitude, with many columns; and what a small call costs."""
    sizes = setting.sizes

    def case(n: int, sparsity: float) -> Case:
        w, mask = pruned(sizes.square, sparsity)
        a = gs.SparseMatrix.from_dense(w, mask)
        name = f"{_named(sizes.square)} N={n} {sparsity:.0%}"
        return product(setting, name, w, a, normal((sizes.square[1], n), 1), sparsity=sparsity)

    def small() -> Case:
        w, mask = pruned((64, 64), 0.9)
        a = gs.SparseMatrix.from_dense(w, mask, format="csr")
        return product(setting, "64x64 N=1 90%", w, a, normal((64, 1), 1), sparsity=0.9)

    cases: list[Plan] = [
        (f"N={n} {sparsity:.0%}", partial(case, n, sparsity)) for sparsity in sizes.sparsities for n in sizes.columns
    ]
    return [*cases, ("64x64", small)]


def spmv(setting: Setting) -> list[Plan]:
    """One column and a matrix that no cache holds: as fast as what is stored can be read."""
    shape = setting.sizes.tall

    def case(dtype: Any, sparsity: float) -> Case:
        w, mask = pruned(shape, sparsity)
        name = f"{_named(shape)} {np.dtype(dtype)} {sparsity:.0%}"
        stored = w.astype(dtype)
        form = "bitmask" if sparsity <= 0.5 else "auto"
        a = gs.SparseMatrix.from_dense(stored, mask, format=form)
        made = product(setting, name, stored.astype(np.float32), a, normal((shape[1], 1), 1), sparsity=sparsity)
        return _beside_a_read(made, setting)

    return [
        (f"{np.dtype(dtype)} {sparsity:.0%}", partial(case, dtype, sparsity))
        for sparsity, dtype in ((0.5, np.float32), (0.5, ml_dtypes.bfloat16), (0.9, np.float32))
    ]


def nm(setting: Setting) -> list[Plan]:
    """N:M and vectors of eight rows."""
    shape = setting.sizes.square

    def case(pattern: str, form: str, sparsity: float, n: int) -> Case:
        w, mask = pruned(shape, sparsity, pattern)
        a = gs.SparseMatrix.from_dense(w, mask, format=form)
        name = f"{_named(shape)} {pattern} N={n} {sparsity:.0%}"
        return product(setting, name, w, a, normal((shape[1], n), 1), sparsity=sparsity, pattern=pattern)

    patterns = (
        ("2:4", "2:4", 0.5),
        ("1:4", "1:4", 0.75),
        ("block:8x1", "bsr:8x1", 0.5),
        ("block:8x1", "bsr:8x1", 0.75),
    )
    return [
        (f"{pattern} N={n} {sparsity:.0%}", partial(case, pattern, form, sparsity, n))
        for pattern, form, sparsity in patterns
        for n in setting.sizes.structured
    ]


# ------------------------------------------------------------------------------------------------------------- training


def train(setting: Setting) -> list[Plan]:
    """The two products of a backward pass at 90 %, and whole training steps."""
    return [
        ("backward dX", partial(_backward, setting)),
        ("SDDMM", partial(_sddmm, setting)),
        *((f"step {sparsity:.0%}", partial(_training_step, setting, sparsity)) for sparsity in (0.9, 0.95)),
    ]


def _training_step(setting: Setting, sparsity: float) -> Case:
    """SGD with momentum on an MLP: on the kept weights alone, beside the masked dense step of numpy."""
    rng, n = np.random.default_rng(0), setting.sizes.batch
    inside, hidden = setting.sizes.square[1] // 4, setting.sizes.square[0]
    params = model.initialize([inside, hidden, inside], rng)
    weights, masks = gs.prune(model.weights(params), sparsity=sparsity)
    params.update(weights)
    x, y = (rng.standard_normal((n, inside), dtype=np.float32) for _ in range(2))
    dense, sparse = (optimizers.SGD(0.1, momentum=0.9) for _ in range(2))
    training = steps.SparseTraining(params, masks, sparse, loss=losses.mean_squared_error)
    grads: dict[str, Array] = {}

    def dense_step() -> None:
        values = model.activations(params, x)
        gradient = losses.mean_squared_error(values[-1], y)[1]
        grads.update(model.backward(params, values, gradient, out=grads or None))
        dense.step(params, grads, masks)

    def sparse_step() -> None:
        training.step(x, y)

    for _ in range(3):
        dense_step()
        sparse_step()
    trained = model.copy(params)
    training.write(trained)
    for name, expected in params.items():
        try:
            near(expected.astype(np.float64), 1e-4)(trained[name])
        except AssertionError as error:
            raise WrongAnswerError(f"bench: training step: {name}: {error}") from error
    dense.rate = sparse.rate = 1e-9  # from here on the same step is timed again and again
    contestants = [Contestant("gossamer", "gossamer", sparse_step), Contestant("numpy", "dense", dense_step)]
    facts = {"operation": "step", "shape": [inside, hidden, inside], "n": n, "sparsity": sparsity, "dtype": "float32"}
    return Case(f"step {_named((inside, hidden, inside))} N={n} {sparsity:.0%}", contestants, facts)


def _backward(setting: Setting) -> Case:
    """dX.T = W.T @ dY.T, from a layer's own matrix."""
    shape, n = setting.sizes.square, setting.sizes.batch
    w, mask = pruned(shape, 0.9)
    turned = gs.SparseMatrix.from_dense(w, mask).T
    gradient = normal((shape[0], n), 6)
    name = f"backward dX {_named(shape)} N={n} 90%"
    transposed = np.ascontiguousarray(w.T)
    return product(setting, name, transposed, turned, gradient, sparsity=0.9, operation="backward dX")


def _sddmm(setting: Setting) -> Case:
    """The gradient of the kept weights: X @ Y.T only where the mask keeps."""
    shape, k = setting.sizes.square, setting.sizes.batch
    w, mask = pruned(shape, 0.9)
    pattern = gs.SparseMatrix.from_dense(w, mask, format="csr")
    left, right = normal((shape[0], k), 4), normal((shape[1], k), 5)
    kept = mask.indices()
    check = near(exact_product(left, right.T).reshape(-1)[kept])
    out, whole = np.zeros(mask.nnz, np.float32), np.zeros(shape, np.float32)
    contestants = [
        Contestant("gossamer", "gossamer", lambda: gs.sddmm(left, right, pattern, out=out).values, check),
        Contestant("numpy", "dense", lambda: np.matmul(left, right.T, out=whole).reshape(-1)[kept], check),
    ]
    torch = setting.torch
    if torch is not None:
        import scipy.sparse

        rows = torch_rows(scipy.sparse.csr_array(w))
        x, y = as_tensor(left), as_tensor(right)
        sampled = torch.sparse.sampled_addmm
        contestants.append(
            Contestant("torch sampled_addmm", "sparse", lambda: sampled(rows, x, y.T, beta=0).values(), check)
        )
    facts = {"operation": "SDDMM", "shape": list(shape), "n": k, "sparsity": 0.9, "dtype": "float32", "format": "csr"}
    nbytes = left.nbytes + right.nbytes + out.nbytes + structure_bytes(pattern, "csr")
    return Case(f"SDDMM {_named(shape)} K={k} 90%", contestants, facts, 2.0 * mask.nnz * k, nbytes)


# --------------------------------------------------------------------------------------------------------------- layers


def layers(setting: Setting) -> list[Plan]:
    """The layers of a sentence encoder with masks of two methods; and a trained network, where a folder is given."""
    plans: list[Plan] = [
        (f"{name} {method} {sparsity:.0%}", partial(_encoder_layer, setting, name, method, sparsity))
        for name in minilm.LAYER_SHAPES
        for method in ("magnitude", "wanda")
        for sparsity in setting.sizes.sparsities
    ]
    if setting.model is not None:
        tensors = gs.load(setting.model / "model.safetensors")
        matrices = {name: a for name, a in tensors.items() if isinstance(a, gs.SparseMatrix)}
        plans += [(name, partial(_trained_layer, setting, name, a)) for name, a in matrices.items()]
    return plans


def _encoder_layer(setting: Setting, name: str, method: str, sparsity: float) -> Case:
    layer = minilm.layer(name, setting.sizes.layers)
    w, x = layer.weights, layer.inputs[: setting.sizes.batch]
    stats = None
    if method == "wanda":
        stats = gs.Stats("norm")
        stats.update(layer.inputs)
    kept, mask = gs.prune(w, sparsity=sparsity, method=method, stats=stats)
    kept = np.asarray(kept)
    a = gs.SparseMatrix.from_dense(kept, mask)
    title = f"{layer.name} {_named(kept.shape)} {method} {sparsity:.0%}"
    made = product(setting, title, kept, a, x, layer=True, sparsity=sparsity, method=method, real=layer.real)
    other, random = gs.prune(np.random.default_rng(7).standard_normal(w.shape, dtype=np.float32), nnz=mask.nnz)
    like, out = gs.SparseMatrix.from_dense(other, random), np.zeros((len(x), len(w)), np.float32)
    made.contestants.append(Contestant("random mask", "gossamer", partial(gs.linear, x, like, out=out)))
    made.notes += [] if layer.real else ["random weights and inputs, not MiniLM's"]
    return made


def _trained_layer(setting: Setting, name: str, a: gs.SparseMatrix) -> Case:
    w, n = a.to_dense().astype(np.float32), setting.sizes.batch
    matrix = gs.SparseMatrix.from_dense(w, a.mask)
    title = f"{name} {_named(a.shape)} {1 - a.density:.0%}"
    x = normal((n, a.shape[1]), 3)
    return product(setting, title, w, matrix, x, layer=True, sparsity=1 - a.density, method="trained", real=True)


# --------------------------------------------------------------------------------------------------------------- select


def select(setting: Setting) -> list[Plan]:
    """Masks and pruned weights, held against one read of the inputs."""
    jobs: dict[str, Callable[[Setting, str, Shape, float], Case]] = {
        "topk_mask": _topk_mask,
        "mask from weights": partial(_mask_from_weights, "magnitude"),
        "taylor mask from weights": partial(_mask_from_weights, "taylor"),
        "prune": _prune,
    }
    return [
        (f"{name} {_named(shape)} {sparsity:.0%}", partial(job, setting, name, shape, sparsity))
        for shape in setting.sizes.select
        for sparsity in (0.5, 0.9)
        for name, job in jobs.items()
    ]


class _Scored(NamedTuple):
    """Inputs, how they become scores (None: they are), and how many are kept."""

    inputs: tuple[Array, ...]
    score: Callable[..., Any] | None
    kept: int

    def scores(self, inputs: tuple[Any, ...]) -> Any:
        return inputs[0] if self.score is None else self.score(*inputs)

    def mask(self) -> Callable[[Any], None]:
        """A check, bit for bit, by numpy: the highest scores, among equals the first."""
        scores = self.scores(self.inputs).reshape(-1)
        threshold = np.partition(scores, scores.size - self.kept)[scores.size - self.kept]
        expected = scores > threshold
        ties = np.flatnonzero(scores == threshold)
        expected[ties[: self.kept - np.count_nonzero(expected)]] = True

        def check(mask: Any) -> None:
            wrong = int(np.count_nonzero(mask.to_dense().reshape(-1) != expected))
            if wrong:
                raise AssertionError(f"the mask must be numpy's, {wrong} of {expected.size} bits differ")

        return check


def _magnitudes(shape: Shape, sparsity: float) -> _Scored:
    w = normal(shape)
    return _Scored((w,), abs, _core.kept_count(w.size, sparsity))


def _selection(
    setting: Setting,
    operation: str,
    shape: Shape,
    sparsity: float,
    given: _Scored,
    ours: Contestant,
    read: float,
    written: float,
) -> Case:
    """Beside a read of the inputs, and tools that only find the threshold: they get less to do."""
    kept, size = given.kept, shape[0] * shape[1]
    place = size - kept
    threshold = float(np.partition(given.scores(given.inputs), place, axis=None)[place])

    def finds(answer: Any) -> None:
        if float(answer) != threshold:
            raise AssertionError(f"the threshold must be {threshold}, got {float(answer)}")

    def partition() -> Any:
        return np.partition(given.scores(given.inputs), place, axis=None)[place]

    contestants = [ours, Contestant("np.partition", "selection", partition, finds)]
    torch = setting.torch
    if torch is not None:
        tensors = tuple(as_tensor(a) for a in given.inputs)

        def kthvalue() -> Any:
            return torch.kthvalue(given.scores(tensors).view(-1), place + 1).values

        def topk() -> Any:
            return torch.topk(given.scores(tensors).view(-1), kept, sorted=False).values

        contestants += [
            Contestant("torch.kthvalue", "selection", kthvalue, finds),
            Contestant("torch.topk", "selection", topk, lambda values: finds(values.min())),
        ]
    facts = {"operation": operation, "shape": list(shape), "sparsity": sparsity, "dtype": "float32"}
    case = Case(f"{operation} {_named(shape)} {sparsity:.0%}", contestants, facts, nbytes=read + written)
    return _beside_a_read(case, setting, read)


def _topk_mask(setting: Setting, name: str, shape: Shape, sparsity: float) -> Case:
    scores, kept = np.abs(normal(shape)), _magnitudes(shape, sparsity).kept
    given = _Scored((scores,), None, kept)
    ours = Contestant("gossamer", "gossamer", lambda: gs.topk_mask(scores, nnz=kept), given.mask())
    return _selection(setting, name, shape, sparsity, given, ours, scores.nbytes, scores.size / 8)


def _mask_from_weights(method: str, setting: Setting, name: str, shape: Shape, sparsity: float) -> Case:
    given = _magnitudes(shape, sparsity)
    if method == "taylor":
        given = _Scored((*given.inputs, normal(shape, 1)), lambda w, g: abs(w * g), given.kept)
    kept, inputs = given.kept, given.inputs
    ours = Contestant("gossamer", "gossamer", lambda: mask_of(*inputs, method=method, nnz=kept), given.mask())
    read = sum(a.nbytes for a in inputs)
    return _selection(setting, name, shape, sparsity, given, ours, read, inputs[0].size / 8)


def _prune(setting: Setting, name: str, shape: Shape, sparsity: float) -> Case:
    """Reads the weights for the mask, reads them again and writes what is kept."""
    given = _magnitudes(shape, sparsity)
    (w,), out, mask_is_right = given.inputs, np.zeros(shape, np.float32), given.mask()

    def check(result: Any) -> None:
        mask_is_right(result[1])
        if not np.array_equal(result[0], np.where(result[1].to_dense(), w, np.float32(0))):
            raise AssertionError("the pruned weights must be those that the mask keeps")

    ours = Contestant("gossamer", "gossamer", lambda: gs.prune(w, nnz=given.kept, out=out), check)
    return _selection(setting, name, shape, sparsity, given, ours, 2 * w.nbytes, w.nbytes + w.size / 8)


def _beside_a_read(case: Case, setting: Setting, nbytes: float | None = None) -> Case:
    """With a plain read of as many bytes (default: all that the row counts) among the contestants."""
    reader = Reader(int(case.nbytes if nbytes is None else nbytes), setting.threads)
    case.contestants.append(Contestant("read", "limit", reader, timed=True))
    return case


def _named(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


SUITES: dict[str, Callable[[Setting], list[Plan]]] = {
    suite.__name__: suite for suite in (select, spmm, spmv, nm, train, layers)
}
