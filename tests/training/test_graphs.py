"""Steps as CUDA graphs: the same bits as steps that Python launches, kernel by kernel."""

import pytest
import torch
from interpreted import GPU
from small_trainee import batch, make

from matryoshka.data.stream import Batch
from matryoshka.training import checkpoint
from matryoshka.training.trainee import Trainee


def state(trainee):
    """Every tensor that training changes."""
    return checkpoint._tensors(trainee)


def test_a_step_writes_all_that_stays_in_place():
    """A graph reads and writes the places that it was captured with."""
    trainee = make()
    trainee.step(batch(0), 0, measure=True)
    places = {name: x.data_ptr() for name, x in {**state(trainee), **trainee._measures}.items()}
    trainee.dead.tokens_since_fired[:9] = 65
    for step in range(1, 20):
        trainee.step(batch(step), step, measure=step % 3 == 0)
    assert {name: x.data_ptr() for name, x in {**state(trainee), **trainee._measures}.items()} == places


@pytest.mark.parametrize("values", [{"activation": "jumprelu"}, {"activation": "batchtopk"}])
def test_on_a_cpu_there_are_no_graphs(values):
    trainee = make(**values)
    assert trainee.graphs is None
    assert trainee.unfit is None


def pair(activation, aside=False, **training) -> tuple[Trainee, Trainee]:
    """The same trainee twice: graphed, and launched by Python."""
    graphed, eager = (make(activation, "cuda", beside=aside, select="bfloat16", **training) for _ in range(2))
    assert graphed.graphs is not None
    eager.graphs = None
    return graphed, eager


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_graph_gives_the_same_bits(activation):
    """Over warm-up and decay, with latents that die and come back, and steps that are measured."""
    graphed, eager = pair(activation)
    deaths = 0
    for step in range(30):
        data = batch(step, device="cuda")
        for trainee in (graphed, eager):
            trainee.step(data, step, measure=step % 5 == 4)
        deaths += int(eager.dead.now.sum())
        for (name, ours), theirs in zip(state(graphed).items(), state(eager).values(), strict=True):
            assert ours.equal(theirs), f"{name} after step {step}"
        if step % 5 == 4:
            assert graphed.report(5) == eager.report(5)
    assert deaths, "the dead latents' term was never at work"
    assert graphed.graphs._graphs
    assert sum(graph is not None for graph in graphed.graphs._graphs.values()) >= 2


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("aside", [False, True])
def test_several_coders_of_one_batch_do_not_disturb_one_another(aside):
    """One after another in the same memory, or each in a stream of its own."""
    trainees = [trainee for activation in ("topk", "batchtopk") for trainee in pair(activation, aside)]
    for step in range(12):
        data = batch(step, device="cuda")
        for trainee in trainees:
            trainee.step(data, step, measure=step == 11)
        for trainee in trainees:
            trainee.join()
    for graphed, eager in (trainees[:2], trainees[2:]):
        assert all(
            ours.equal(theirs) for ours, theirs in zip(state(graphed).values(), state(eager).values(), strict=True)
        )
        assert graphed.report(12) == eager.report(12)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_graphs_go_on_from_a_checkpoint(tmp_path):
    graphed, eager = pair("batchtopk")
    place = dict.fromkeys(("seed", "epoch", "index", "next_batch", "read", "left_out", "not_finite"), 0)
    for step in range(20):
        if step == 8:
            checkpoint.save(tmp_path, step, [graphed], {"best": {}, "stream": place})
        graphed.step(batch(step, device="cuda"), step, measure=False)
    checkpoint.load(tmp_path / "step_8", [graphed], 30)
    for step in range(20):
        eager.step(batch(step, device="cuda"), step, measure=False)
    for step in range(8, 20):
        graphed.step(batch(step, device="cuda"), step, measure=False)
    assert all(ours.equal(theirs) for ours, theirs in zip(state(graphed).values(), state(eager).values(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_an_input_that_is_not_finite_is_noticed_in_a_graph():
    graphed, _ = pair("batchtopk")
    for step in range(6):
        data = batch(step, device="cuda")
        if step == 4:
            data = Batch(
                {
                    site: x.index_fill(0, torch.tensor([3], device="cuda"), torch.nan)
                    for site, x in data.activations.items()
                },
                data.positions,
            )
        graphed.step(data, step, measure=False)
    assert graphed.bad_step.item() == 4
