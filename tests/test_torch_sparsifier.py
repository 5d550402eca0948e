# SPDX-License-Identifier: Apache-2.0
"""gossamer.torch.Sparsifier: masks in a training loop, what becomes of momentum, and equal masks on every rank."""

import copy
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gossamer as gs

torch = pytest.importorskip("torch")
gt = pytest.importorskip("gossamer.torch")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}
SCHEDULE = gs.Constant(every=3)


def _model(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 5)
    ).to(dtype)


def _backward(model: Any, step: int) -> None:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(16, 2, 6, 6, generator=random).to(model[0].weight.dtype)
    y = torch.randint(5, (16,), generator=random)
    torch.nn.functional.cross_entropy(model(x).float(), y).backward()


def _kept(model: Any, sparsifier: Any) -> list[tuple[Any, Any]]:
    return [(model.get_parameter(name), torch.from_numpy(mask.to_dense())) for name, mask in sparsifier.masks.items()]


@pytest.mark.parametrize("regrow", [None, gs.RigL(0.5, 60), gs.SET(0.5, 7)], ids=["prune", "rigl", "set"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_momentum_revives_a_weight(name: str, regrow: Any) -> None:
    model = _model()
    optimizer = OPTIMIZERS[name](model.parameters())
    sparsifier = gt.Sparsifier(model, optimizer, "magnitude", 0.8, schedule=SCHEDULE, regrow=regrow)
    grown = 0
    for step in range(12):
        _backward(model, step)
        optimizer.step()
        event = sparsifier.step()
        assert event.updated == (step % 3 == 0)
        for parameter, kept in _kept(model, sparsifier):
            state = [t for t in optimizer.state[parameter].values() if torch.is_tensor(t) and t.shape == kept.shape]
            assert state
            for tensor in (parameter.detach(), parameter.grad, *state):
                assert not tensor[~kept].any()
            assert all(tensor[kept].any() for tensor in state)
        for weight, mask in event.grown.items():
            new = torch.from_numpy(mask.to_dense())
            grown += int(new.sum())
            parameter = model.get_parameter(weight)
            assert not parameter[new].any()
            assert parameter.grad[new].any()  # a gradient is no memory of the past
            for tensor in optimizer.state[parameter].values():
                assert not torch.is_tensor(tensor) or tensor.shape != new.shape or not tensor[new].any()
        optimizer.zero_grad()
    assert (grown > 0) == (regrow is not None)
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["magnitude", "taylor", "snip"])
def test_masks_are_those_of_the_sparsifier_beneath(method: str, dtype: Any) -> None:
    model = _model(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = gs.Cubic(1, 9, 2)
    sparsifier = gt.Sparsifier(model, optimizer, method, 0.9, schedule=schedule, exclude="0")
    rule = gs.Sparsifier(method, 0.9, schedule=schedule)
    state = rule.init({name: p.detach() for name, p in sparsifier._parameters.items()})
    assert list(sparsifier.masks) == ["3.weight", "5.weight"]
    for step in range(12):
        _backward(model, step)
        optimizer.step()
        weights = {name: gs.apply_mask(p.detach(), state.mask[name]) for name, p in sparsifier._parameters.items()}
        grads = {name: p.grad.clone() for name, p in sparsifier._parameters.items()}
        state, expected = rule.step(state, weights, grads, step)
        event = sparsifier.step()
        assert event == expected
        assert sparsifier.masks == state.mask
        optimizer.zero_grad()
    assert sparsifier.sparsity > 0.89


def test_sparsities_of_layers_stats_and_the_way_to_sparse_layers() -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters())
    shares = {"3.weight": 0.9, "5.weight": 0.5}
    with gt.collect(model, "norm", exclude="0") as stats:
        sparsifier = gt.Sparsifier(model, optimizer, "wanda", shares, exclude="0", stats=lambda: stats)
        _backward(model, 0)
        optimizer.step()
        sparsifier.step()
    assert sparsifier.masks["3.weight"].sparsity == pytest.approx(0.9, abs=0.01)
    assert sparsifier.masks["5.weight"].sparsity == 0.5
    x = torch.randn(3, 2, 6, 6)
    expected = model(x)
    done = gt.sparsify_(model, mask=sparsifier.masks, format="csr")
    assert all(one.replaced for one in done.values())
    assert {name: one.mask for name, one in done.items()} == sparsifier.masks
    torch.testing.assert_close(model(x), expected)


def test_scaled_clipped_and_accumulated_gradients_in_several_groups() -> None:
    model = _model().to(memory_format=torch.channels_last)
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [*model[3].parameters(), *model[5].parameters()]},
    ]
    optimizer, scaler = torch.optim.AdamW(groups, 0.01, fused=True), torch.amp.GradScaler("cpu", init_scale=1024.0)
    schedule, regrow = gs.Cubic(0, 8, 2), gs.RigL(0.3, 10)
    sparsifier = gt.Sparsifier(model, optimizer, "taylor", 0.8, schedule=schedule, regrow=regrow)
    for step in range(12):
        for part in range(2):
            x, y = torch.randn(8, 2, 6, 6), torch.randint(5, (8,))
            with torch.autocast("cpu", torch.bfloat16, enabled=part == 1):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss / 2).backward()
        if step == 4:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() >= before:
            sparsifier.step()
        optimizer.zero_grad(set_to_none=True)
        for parameter, kept in _kept(model, sparsifier):
            state = [t for t in optimizer.state[parameter].values() if t.shape == kept.shape]
            assert len(state) == 2
            assert not any(tensor[~kept].any() for tensor in (parameter.detach(), *state))
    assert sparsifier.steps == 11  # one was skipped
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_going_on_from_a_saved_state_is_the_same_run() -> None:
    def run(interrupt: bool) -> Any:
        model = _model()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        options = {"schedule": gs.Cubic(0, 15, 3), "regrow": gs.RigL(0.3, 20)}
        sparsifier = gt.Sparsifier(model, optimizer, "magnitude", 0.8, **options)
        for step in range(18):
            if interrupt and step == 8:
                stream = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], stream)
                stream.seek(0)
                states = torch.load(stream, weights_only=True)
                model = _model()
                optimizer = torch.optim.Adam(model.parameters(), 0.01)
                sparsifier = gt.Sparsifier(model, optimizer, "magnitude", 0.8, **options)
                for one, state in zip((model, optimizer, sparsifier), states, strict=True):
                    one.load_state_dict(state)
            _backward(model, step)
            optimizer.step()
            sparsifier.step()
            optimizer.zero_grad()
        return model, sparsifier

    (one, first), (two, second) = run(False), run(True)
    assert first.masks == second.masks
    assert first.steps == second.steps == 18
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_hostile_states_are_refused_and_change_nothing() -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters())
    sparsifier = gt.Sparsifier(model, optimizer, "magnitude", 0.8)
    _backward(model, 0)
    optimizer.step()
    sparsifier.step()
    masks, good = sparsifier.masks, sparsifier.state_dict()
    weights = copy.deepcopy(model.state_dict())
    bad: list[tuple[Any, str]] = [
        (3, "state_dict must be a mapping, got int"),
        ({}, "state_dict must have the entry 'masks', got none"),
        ({**good, "steps": -1}, "steps must be an int of at least 0, got -1"),
        ({**good, "updated": True}, "updated must be an int of at least -1, got True"),
        ({**good, "sparsity": "x"}, r"sparsity must be in \[0, 1\], got 'x'"),
        ({**good, "sparsity": {"0.weight": float("nan")}}, r"sparsity must be in \[0, 1\]"),
        ({**good, "masks": 5}, "masks must be those of .*, got int"),
        ({**good, "masks": {"3.weight": good["masks"]["3.weight"]}}, "masks must be those of .*, got"),
    ]
    for state, message in bad:
        with pytest.raises((TypeError, ValueError), match=f"^Sparsifier.load_state_dict: {message}"):
            sparsifier.load_state_dict(state)
    with pytest.raises(ValueError, match=r"^Mask: packed must have the shape"):
        sparsifier.load_state_dict(
            {**good, "masks": {**good["masks"], "5.weight": torch.zeros(1, 1, dtype=torch.uint8)}}
        )
    with pytest.raises(TypeError, match=r"^Mask: packed must be uint8"):
        sparsifier.load_state_dict({**good, "masks": {**good["masks"], "5.weight": torch.zeros(5, 3)}})
    assert sparsifier.masks == masks
    assert sparsifier.steps == 1
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


def test_errors_name_what_is_missing_and_change_no_mask() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"^Sparsifier: optimizer must be a torch.optim.Optimizer, got Sequential"):
        gt.Sparsifier(model, model, "magnitude", 0.5)
    with pytest.raises(ValueError, match=r"^Sparsifier: sparsity must be in \[0, 1\], got 1.5"):
        gt.Sparsifier(model, optimizer, "magnitude", 1.5)
    with pytest.raises(ValueError, match=r"^Sparsifier: module must have a Linear or Conv weight"):
        gt.Sparsifier(torch.nn.ReLU(), optimizer, "magnitude", 0.5)
    sparsifier = gt.Sparsifier(model, optimizer, "taylor", 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^Sparsifier.step: the gradient of '0.weight' must be there"):
        sparsifier.step()
    assert sparsifier.steps == 0
    assert sparsifier.sparsity == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    _backward(model, 0)
    sparsifier.step()
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)
    assert "steps=1" in repr(sparsifier)


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parent.parent / "examples" / "pytorch_sparse_training.py"
    before = torch.get_rng_state()
    runpy.run_path(str(example), run_name="__main__")
    torch.set_rng_state(before)
    found = dict(re.findall(r"^(.+?) +accuracy (\S+)", capsys.readouterr().out, re.MULTILINE))
    assert list(found) == ["masked dense layers", "sparse layers", "trained on, sparse", "exported"]
    assert float(found["sparse layers"]) == pytest.approx(float(found["masked dense layers"]), abs=0.005)
    assert float(found["exported"]) > 0.9


# torch.distributed

RANK = """
import hashlib, os, sys, traceback, torch, torch.distributed as dist, datetime
import gossamer as gs, gossamer.torch as gt
rank, world, path, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
if world:
    limit = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=world, timeout=limit)
torch.manual_seed(rank)  # weights and data of each rank differ: only the broadcast makes masks equal
model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 10))
if mode == "shapes" and rank == 1:
    model = torch.nn.Sequential(torch.nn.Linear(40, 10))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
sparsifier = gt.Sparsifier(model, optimizer, "taylor", 0.8, schedule=gs.Constant(every=2), regrow=gs.RigL(0.3, 50))
try:
    for step in range(7):
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
        if mode == "nan" and step == 4 and rank == 0:
            model[0].weight.data[:] = torch.nan
        if mode == "lost" and step == 4 and rank == 1:
            sys.exit(7)
        event = sparsifier.step()
        optimizer.zero_grad()
        text = repr([(n, m.packed.tobytes()) for n, m in sparsifier.masks.items()] +
                    [(n, m.packed.tobytes()) for part in (event.dropped, event.grown) for n, m in part.items()])
        print(step, hashlib.sha256(text.encode()).hexdigest(), event.updated, flush=True)
    status = 0
except BaseException as error:
    traceback.print_exc()
    status = error.code if isinstance(error, SystemExit) else 1
if status == 0 and world:
    dist.barrier()
sys.stderr.flush()
os._exit(status)  # gloo's threads abort an ordinary exit now and then ("terminate called without an active exception")
"""


def _ranks(tmp_path: Path, world: int, mode: str = "", program: str = RANK) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of every rank (of one process without torch.distributed for ``world`` 0)."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "GOSSAMER_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(world), str(tmp_path / f"store-{mode}"), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(max(1, world))
    ]
    try:
        results = []
        for process in processes:
            out, err = process.communicate(timeout=120)
            results.append((process.returncode, out, err))
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()


gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


@gloo
@pytest.mark.parametrize("world", [2, 4])
def test_masks_are_the_same_on_every_rank(world: int, tmp_path: Path) -> None:
    alone = _ranks(tmp_path, 0)[0]
    assert alone[0] == 0, alone[2]
    assert len(set(alone[1].splitlines())) == 7
    for status, out, err in _ranks(tmp_path, world):
        assert status == 0, err
        assert out == alone[1]  # masks and events of every step: those of rank 0's weights and gradients


DDP = """
import os, sys, torch, torch.distributed as dist, datetime
import gossamer as gs, gossamer.torch as gt
from gossamer.torch import _packs
rank, world, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
limit = datetime.timedelta(seconds=20)
dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=world, timeout=limit)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
gt.sparsify_(model, sparsity=0.5, include="0", format="panel")
wrapped = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
sparsifier = gt.Sparsifier(wrapped, optimizer, "taylor", 0.8, schedule=gs.Cubic(0, 6, 2))
torch.manual_seed(rank)
for step in range(9):
    wrapped(torch.randn(8, 40)).square().sum().backward()
    optimizer.step()
    sparsifier.step()
    optimizer.zero_grad()
    known = _packs.pattern(model[0].packed_mask, 40, "panel")
    assert step == 0 or known is before  # DDP writes the mask again at every step
    before = known
print(list(sparsifier.masks), [float(p.double().sum()) for p in model.parameters()], flush=True)
dist.barrier()
os._exit(0)
"""


@gloo
def test_sparse_layers_and_sparsifier_in_distributed_data_parallel(tmp_path: Path) -> None:
    results = _ranks(tmp_path, 2, "ddp", DDP)
    for status, out, err in results:
        assert status == 0, err
        assert out.startswith("['module.2.weight'] [")
    assert results[0][1] == results[1][1]


@gloo
def test_where_rank_0_fails_all_fail(tmp_path: Path) -> None:
    results = _ranks(tmp_path, 3, "nan")
    assert [status for status, _, _ in results] == [1, 1, 1]
    assert "ValueError: Sparsifier.step" in results[0][2]
    assert "nan" in results[0][2].lower()
    for _, out, err in results[1:]:
        assert len(out.splitlines()) == 4
        assert "RuntimeError: Sparsifier.step: rank 0 failed, and with it all ranks: ValueError" in err


@gloo
def test_a_rank_with_other_weights_is_refused(tmp_path: Path) -> None:
    results = _ranks(tmp_path, 2, "shapes")
    assert results[1][0] == 1
    assert "ValueError: Sparsifier.step: every rank must be at the same step with the same weights" in results[1][2]


@gloo
def test_a_lost_rank_is_an_error_and_no_hang(tmp_path: Path) -> None:
    results = _ranks(tmp_path, 3, "lost")
    assert results[1][0] == 7
    assert results[0][0] != 0 or results[2][0] != 0
