"""The helper that compiles kernels beside a run."""

import subprocess

import pytest

from minitensor import kernels
from minitensor.kernels import compiling as cache
from tinygpt import machine
from tinygpt.model import ahead, decode_kernels, recipes
from tinygpt.model.sample import generate
from tinygpt.model.transformer import GPT
from tinygpt.training import command, compiling

TINY = {"d_model": 32, "n_head": 2, "d_ff": 64, "n_layer": 2, "vocab_size": 300, "context": 16}


@pytest.fixture(autouse=True)
def kernels_that_are_compiled(monkeypatch):
    """Formulas have nothing to compile: without kernels no helper starts."""
    monkeypatch.setenv("MINITENSOR_KERNELS", "numba")


@pytest.fixture
def started(monkeypatch):
    """The processes that helpers start."""
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(machine.subprocess, "Popen", Popen)
    return processes


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["quick", "pinv-0.8m", "shakespeare-char"])
def test_a_helper_calls_the_backward_kernels_and_those_that_write(name):
    c = recipes.get(name).replace(**TINY, reduced_from=0, batch_size=2)
    try:
        compiling.help_with(c.to_dict())
    finally:
        kernels.forget()


@pytest.mark.parametrize(("threads", "cold"), [(1, True), (2, False), (2, True)])
def test_a_helper_starts_where_there_is_something_to_compile(monkeypatch, started, threads, cold):
    monkeypatch.setattr(cache, "cached", lambda names: not cold)
    with compiling.helper(recipes.get("quick").replace(**TINY), threads):
        assert len(started) == (threads > 1 and cold)
        assert all(process.poll() is None for process in started)
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(("cold", "helped"), [(True, True), (True, False), (False, False)])
def test_a_run_compiles_what_writes_before_its_first_step_unless_helped(
    monkeypatch, tiny, cold, helped
):
    monkeypatch.setattr(cache, "cached", lambda names: not cold)
    written, expected = [], []
    monkeypatch.setattr(compiling, "write_two_tokens", lambda model: written.append(model.config))
    monkeypatch.setattr(cache.WAIT, "expect", expected.append)
    with command.ready(tiny, 1) as trainer:
        assert not written and list(expected[-1].values()) == [20.0]
        compiling.compile_kernels(trainer, to_write=not helped, helped=helped)
    assert [c.n_layer for c in written] == [1] * (cold and not helped)
    assert sum(expected[-1].values()) == (15 if helped else 40)


def test_two_tokens_call_every_kernel_that_writes(monkeypatch, tiny):
    called, call = set(), cache.Kernel.__call__

    def spy(kernel, *args):
        called.add(kernel.__name__)
        return call(kernel, *args)

    monkeypatch.setattr(cache.Kernel, "__call__", spy)
    model = GPT(tiny)
    compiling.write_two_tokens(model)
    first = frozenset(called)
    list(generate(model, [0], max_new_tokens=40, seed=1))
    assert first == called and len(first) > 1


@pytest.mark.parametrize("fault", ["cannot start", "fails"])
def test_a_run_does_without_a_helper_that_fails(monkeypatch, started, tiny, fault):
    monkeypatch.setattr(cache, "cached", lambda names: False)
    if fault == "fails":
        monkeypatch.setenv("PYTHONHOME", "/nowhere")
    else:
        monkeypatch.setattr(machine.sys, "executable", "/nowhere/python")
    with command.ready(tiny, 2) as trainer:
        assert trainer.step(0)[0] > 0
        assert [process.wait(60) != 0 for process in started] == [True] * (fault == "fails")


@pytest.mark.parametrize(("cores", "cold"), [(1, True), (2, False), (2, True)])
def test_what_writes_is_compiled_beside_what_begins(monkeypatch, started, tiny, cores, cold):
    monkeypatch.setattr(ahead, "cores", lambda: cores)
    monkeypatch.setattr(cache, "cached", lambda names: not cold)
    with ahead.compiling_ahead(tiny):
        assert len(started) == (cores > 1 and cold)
    assert all(process.poll() is not None for process in started)


def test_what_is_compiled_ahead_is_what_a_text_needs(monkeypatch):
    """One specialisation serves any model of a dtype: the other process makes no other."""
    ahead.compile_writing("float32")
    kernel = decode_kernels.write.call
    before = set(kernel.overloads)
    list(generate(GPT(recipes.get("quick").replace(**TINY)), [0], max_new_tokens=3))
    assert before and set(kernel.overloads) == before
